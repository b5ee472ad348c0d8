"""The site that ``make docs`` builds: links and pictures lead somewhere, and it works offline."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from documents import ROOT

pytestmark = pytest.mark.docs

SITE = ROOT / "docs" / "_build" / "html"


class Page(HTMLParser):
    """Links, anchors, loaded files and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.classes |= set(found.get("class", "").split())
        if "id" in found:
            self.anchors.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("img", "script", "source") and "src" in found:
            self.loaded.append(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(found["href"])


@pytest.fixture(scope="module")
def site() -> dict[Path, Page]:
    if not (SITE / "index.html").is_file():
        pytest.skip("the site is not built; make docs")
    return {p: Page(p.read_text(encoding="utf-8")) for p in sorted(SITE.rglob("*.html"))}


def broken(path: Path, page: Page, site: dict[Path, Page]) -> list[str]:
    faults = []
    for link in page.links:
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / unquote(name)).resolve() if name else path
        if not target.exists():
            faults.append(f"{link}: no such file")
        elif anchor and target in site and unquote(anchor) not in site[target].anchors:
            faults.append(f"{link}: no such place")
    return faults


def test_links_lead_somewhere(site: dict[Path, Page]) -> None:
    faults = {
        str(p.relative_to(SITE)): found
        for p, page in site.items()
        if (found := broken(p, page, site))
    }
    assert faults == {}
    index = SITE / "index.html"
    assert broken(index, Page('<a href="start.html#no"></a><a href="no.html"></a>'), site) == [
        "start.html#no: no such place",
        "no.html: no such file",
    ]


def test_nothing_is_loaded_from_elsewhere(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        for file in page.loaded:
            assert "//" not in file, (path, file)
            local = path.parent / unquote(file.split("?")[0])
            assert local.is_file(), (path, file)


def test_no_message_of_the_builder_is_left(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        assert "system-message" not in page.classes, path


def test_every_page_is_there(site: dict[Path, Page]) -> None:
    docs = ROOT / "docs"
    sources = [
        p for p in docs.rglob("*") if p.suffix in (".md", ".rst") and "_build" not in p.parts
    ]
    missing = [p for p in sources if SITE / p.relative_to(docs).with_suffix(".html") not in site]
    assert missing == []
