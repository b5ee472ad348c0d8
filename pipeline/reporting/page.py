"""Small pieces of HTML; text that is not marked as HTML is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

DASH = "\N{EN DASH}"


class Safe(str):
    """Text that is HTML already; everything else is escaped before it enters the page."""

    __slots__ = ()


def escape(value: object) -> str:
    """Escape a value for HTML, unless it is marked as HTML.

    Args:
        value: anything; what is no text is converted.

    Returns:
        HTML.

    Example:
        >>> escape("a < b"), escape(Safe("<b>1</b>"))
        ('a &lt; b', '<b>1</b>')
    """
    return value if isinstance(value, Safe) else html.escape(str(value))


LARGEST = 1e300
"""Numbers whose magnitude is below this can be shown; NaN is not below it."""


def finite(value: Any) -> bool:
    """Whether a value is a number that can be shown.

    Args:
        value: anything that JSON holds.

    Returns:
        False for None, NaN, infinities and what is no number.
    """
    return isinstance(value, int | float) and abs(value) < LARGEST


def number(value: Any) -> str:
    """A number with three decimals; a dash for what is no finite number.

    Args:
        value: anything that JSON holds.

    Returns:
        Text.

    Example:
        >>> number(0.51234), number(None) == DASH, number(7)
        ('0.512', True, '7.000')
    """
    return f"{value:.3f}" if finite(value) else DASH


def clock(seconds: Any) -> str:
    """A duration in words.

    Args:
        seconds: a number; anything else counts as 0.

    Returns:
        Minutes and seconds, or hours and minutes.

    Example:
        >>> clock(61.2), clock(7300)
        ('1 min 01 s', '2 h 01 min')
    """
    whole = round(seconds) if finite(seconds) else 0
    return (
        f"{whole // 3600} h {whole % 3600 // 60:02} min"
        if whole >= 3600
        else f"{whole // 60} min {whole % 60:02} s"
    )


LONG = 40
"""Number of characters above which a cell may be broken into lines."""


def table(head: Sequence[object], rows: Sequence[tuple[str, Sequence[object]]]) -> str:
    """A table; one wider than the page scrolls in its own box, with a hint.

    The names of its rows stay in sight.

    Args:
        head: titles of the columns.
        rows: (CSS class, cells). The first cell names the row, and spans the columns that the row
            is short of.

    Returns:
        HTML.
    """
    top = "".join(f'<th scope="col"{_kind(h)}>{escape(h)}</th>' for h in head)
    body = ""
    for kind, cells in rows:
        span = len(head) - len(cells) + 1
        body += f'<tr class="{kind}"><th scope="row" colspan="{span}">{escape(cells[0])}</th>'
        body += "".join(f"<td{_kind(c)}>{escape(c)}</td>" for c in cells[1:]) + "</tr>"
    hint = '<p class="hint">scroll sideways for more columns</p>'
    return (
        f'<div class="wide">{hint}<table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _kind(value: object) -> str:
    """The CSS class of a cell with long text, as an attribute."""
    return ' class="text"' if not isinstance(value, Safe) and len(str(value)) > LONG else ""


def section(title: str, *parts: str, note: str = "") -> str:
    """A section of the page.

    Args:
        title: its heading, as text.
        *parts: HTML.
        note: text below the heading.

    Returns:
        HTML.
    """
    lead = f"<p>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{''.join(parts)}</section>"


def figure(title: str, keys: str, body: str) -> str:
    """A figure with a caption.

    Args:
        title: text.
        keys: legend, as HTML.
        body: HTML.

    Returns:
        HTML.
    """
    return f"<figure><figcaption><b>{escape(title)}</b>{keys}</figcaption>{body}</figure>"


def document(title: str, body: str) -> str:
    """The whole document.

    Its content security policy forbids every request and every script, whatever the body holds.

    Args:
        title: text.
        body: HTML.

    Returns:
        HTML.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


STYLE = r"""
:root{color-scheme:light dark;--bg:#f6f5f2;--card:#fff;--ink:#1d2126;--soft:#666d75;--line:#e2e0da;
 --c0:#0a6c9f;--c1:#d0570a;--c2:#0d8f68;--c3:#9c4f86;--band:#0a6c9f22;--edge:#0004;--good:#0d7f5c;
 --bad:#b3261e;--warn:#8f5b00}
@media(prefers-color-scheme:dark){
 :root{--bg:#15181c;--card:#1e2227;--ink:#e7e9eb;--soft:#9aa3ac;--line:#343a41;--c0:#5cb8ea;
  --c1:#f79a4b;--c2:#47cfa3;--c3:#dc94c4;--band:#5cb8ea2e;--edge:#fff5;--good:#4fd1a2;--bad:#ff8a80;
  --warn:#f0bd5b}
}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:2rem 1.25rem 4rem;background:var(--bg);color:var(--ink);
 font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:2rem;line-height:1.15;margin:0;letter-spacing:-.02em}
h2{font-size:1.25rem;margin:0 0 .4rem}
h3{font-size:1rem;margin:1rem 0 .25rem}
p{margin:.2rem 0 .8rem;color:var(--soft);max-width:95ch}
header{margin-bottom:2rem}
section{margin:0 0 2.5rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(200px,100%),1fr));gap:.75rem}
.tile,.wide,figure,article,aside,details{background:var(--card);border:1px solid var(--line);
 border-radius:10px}
.tile{padding:.8rem 1rem}
.tile span{color:var(--soft)}
.tile b{display:block;font-size:1.9rem;line-height:1.2;font-variant-numeric:tabular-nums}
small{display:block;color:var(--soft);font-size:.8rem;font-variant-numeric:tabular-nums}
aside{margin-top:1rem;padding:.7rem 1rem;border-left:4px solid var(--warn)}
aside ul{margin:.2rem 0 0;padding-left:1.2rem}
.wide{overflow-x:auto;
 background:linear-gradient(to left,var(--card) 50%,transparent) right/3rem 100% no-repeat local,
  linear-gradient(to left,var(--edge),transparent) right/.9rem 100% no-repeat scroll,var(--card)}
.wide::-webkit-scrollbar{height:10px}
.wide::-webkit-scrollbar-thumb{background:var(--soft);border:2px solid var(--card);
 border-radius:5px}
.hint{display:none;position:sticky;left:0;width:max-content;max-width:100%;margin:0;
 padding:.3rem .7rem 0;font-size:.8rem}
.hint:after{content:" \2192"}
@supports(animation-timeline:scroll()){
 .wide{animation:more linear;animation-timeline:scroll(self inline)}
 .hint{display:var(--more,none)}
}
@keyframes more{
 from,to{--more:block}
}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .7rem;text-align:right;vertical-align:top;white-space:nowrap}
th:first-child{text-align:left}
.text{min-width:min(18rem,50vw);white-space:normal;overflow-wrap:anywhere!important}
td.text{text-align:left}
tbody th{min-width:min(14rem,36vw);white-space:normal}
thead th{white-space:normal;overflow-wrap:normal}
th[colspan="1"],thead th:first-child{position:sticky;left:0;z-index:1;background:var(--card);
 border-right:1px solid var(--line)}
tr.mean th[colspan="1"]{background:linear-gradient(var(--band),var(--band)),var(--card)}
thead th{color:var(--soft);font-weight:500;border-bottom:1px solid var(--line)}
tbody th{font-weight:500}
tbody tr+tr{border-top:1px solid var(--line)}
tr.other{border-top:0!important;color:var(--soft)}
tr.mean{background:var(--band)}
tr.mean td,tr.mean th{font-weight:700}
tr.mean small{font-weight:400}
tr.rival{color:var(--soft)}
.badge{display:inline-block;padding:0 .55em;border-radius:99px;font-size:.85em;font-weight:500;
 border:1px solid currentColor;color:var(--soft)}
.badge.completed{color:var(--good)}
.badge.failed{color:var(--bad)}
.badge.stopped{color:var(--warn)}
.wide+.row{margin-top:.75rem}
.row{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr));gap:.75rem}
figure{margin:0;padding:.7rem .8rem .3rem}
figcaption{display:flex;flex-wrap:wrap;gap:.2rem .9rem;align-items:baseline}
.key{color:var(--soft);font-size:.85rem}
.key[class*=" c"]:before{content:"";display:inline-block;width:1.1em;height:3px;margin-right:.4em;
 vertical-align:middle;background:var(--k)}
.c0{--k:var(--c0)}
.c1{--k:var(--c1)}
.c2{--k:var(--c2)}
.c3{--k:var(--c3)}
svg{display:block;width:100%;height:auto}
svg text{font-size:11px;fill:var(--soft)}
.grid{stroke:var(--line)}
.mark{stroke:var(--soft);stroke-dasharray:4 4}
polyline{fill:none;stroke:var(--k);stroke-width:2;stroke-linejoin:round}
circle{fill:var(--k)}
.dot{fill:var(--c0);fill-opacity:.55}
.bar{fill:var(--c0);fill-opacity:.75}
.band{fill:var(--band)}
.mean{stroke:var(--c1);stroke-width:2}
.none{padding:1.5rem 0;color:var(--soft)}
article{padding:1rem 1.1rem;margin-top:1rem}
article h3{margin-top:0}
.strip{display:grid;grid-template-columns:repeat(4,1fr);gap:.5rem;margin-bottom:.5rem}
.strip>span{grid-column:1/-1;color:var(--soft);font-size:.85rem}
.strip figure{border:0;padding:0}
.strip img{display:block;width:100%;border-radius:4px;image-rendering:pixelated}
.strip figcaption{font-size:.8rem;color:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem}
.legend i{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin-right:.4em;
 vertical-align:-.1em}
.strip.large{grid-template-columns:repeat(2,1fr)}
.large img{image-rendering:auto;cursor:zoom-in}
.large img:focus{position:fixed;inset:0;z-index:1;margin:auto;width:auto;height:auto;
 max-width:100vw;max-height:100vh;outline:0;box-shadow:0 0 0 100vmax #000c;cursor:default}
.hatch{background:repeating-linear-gradient(135deg,#999 0 2px,#666 2px 5px)}
details{margin-top:.6rem;padding:.6rem 1rem}
summary{cursor:pointer;font-weight:500}
pre{overflow-x:auto;font-size:.82rem;line-height:1.4}
@media(max-width:640px){
 .tiles{grid-template-columns:repeat(auto-fill,minmax(140px,1fr))}
 .tile b{font-size:1.5rem}
 .strip{grid-template-columns:repeat(2,1fr)}
}
"""
"""Light and dark colour schemes; system fonts, so that nothing is fetched."""
