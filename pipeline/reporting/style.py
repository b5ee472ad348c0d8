"""The style of the page: light and dark colours, and system fonts, so that nothing is fetched."""

from __future__ import annotations

BASE = r"""
:root{color-scheme:light dark;--bg:#f6f5f2;--card:#fff;--ink:#1d2126;--soft:#666d75;--line:#e2e0da;
 --c0:#0a6c9f;--c1:#d0570a;--c2:#0d8f68;--c3:#9c4f86;--band:#0a6c9f22;--good:#0d7f5c;
 --bad:#b3261e;--warn:#8f5b00}
@media(prefers-color-scheme:dark){
 :root{--bg:#15181c;--card:#1e2227;--ink:#e7e9eb;--soft:#9aa3ac;--line:#343a41;--c0:#5cb8ea;
  --c1:#f79a4b;--c2:#47cfa3;--c3:#dc94c4;--band:#5cb8ea2e;--good:#4fd1a2;--bad:#ff8a80;
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
.wide{container-type:inline-size;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .55rem;text-align:right;vertical-align:top;white-space:nowrap;
 overflow-wrap:normal}
.word,.text{text-align:left;white-space:normal;overflow-wrap:anywhere}
td.word,tbody th.word{min-width:10rem}
td.text,tbody th.text{min-width:12rem}
th:first-child{text-align:left}
.pair td,.pair tbody th{min-width:0}
.plan table{table-layout:fixed}
.plan th:first-child{width:22%}
.plan th:nth-child(2){width:36%}
thead th{white-space:normal;overflow-wrap:break-word}
.again{display:none}
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
.strip{display:grid;grid-template-columns:repeat(4,1fr);gap:.5rem;margin-bottom:.5rem;align-items:start}
.strip.n1,.strip.n2{grid-template-columns:repeat(2,1fr)}
.strip.n3{grid-template-columns:repeat(3,1fr)}
.strip>span{grid-column:1/-1;color:var(--soft);font-size:.85rem}
.strip figure{border:0;padding:0}
.strip img{display:block;width:100%;border-radius:4px;image-rendering:pixelated}
.strip figcaption{font-size:.8rem;color:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem}
.legend i,.swatch i{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin-right:.4em;
 vertical-align:-.1em}
.strip.large{grid-template-columns:repeat(2,1fr)}
.large img{image-rendering:auto;cursor:zoom-in}
.large img:focus{position:fixed;inset:0;z-index:1;margin:auto;width:auto;height:auto;
 max-width:100vw;max-height:100vh;outline:0;box-shadow:0 0 0 100vmax #000c;cursor:default}
.hatch{background:repeating-linear-gradient(135deg,#999 0 2px,#666 2px 5px)}
details{margin-top:.6rem;padding:.6rem 1rem}
summary{cursor:pointer;font-weight:500}
pre{white-space:pre-wrap;font-size:.82rem;line-height:1.4}
footer{border-top:1px solid var(--line);padding-top:1rem;color:var(--soft);font-size:.85rem}
@media(max-width:640px){
 .tiles{grid-template-columns:repeat(auto-fill,minmax(140px,1fr))}
 .tile b{font-size:1.5rem}
 .strip{grid-template-columns:repeat(2,1fr)}
 .strip.n1,.strip.n3{grid-template-columns:1fr}
}
"""

BREAKS = (340, 460, 580, 700, 820, 940, 1060, 1130)
"""Widths in pixels below which the rows of a table become blocks; each has its rules."""

BLOCKS = """
T{display:block}
T thead{display:none}
T tbody{display:block}
T tr{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.2rem,1fr));gap:.35rem .8rem;
 padding:.6rem .7rem}
T th,T td{display:block;min-width:0;padding:0;text-align:left;white-space:normal;
 overflow-wrap:anywhere}
T th,T td.text{grid-column:1/-1}
T td:before{content:attr(data-title);display:block;color:var(--soft);font-size:.8rem;
 font-weight:400}
T td:empty{display:none}
T .again{display:inline}
"""
"""Rows as blocks, for tables whose class stands in place of ``T``."""


def _style() -> str:
    """All rules, those of blocks for each width."""
    below = "".join(
        f"@container (max-width:{width - 1}px){{{BLOCKS.replace('T', f'.below{width}')}}}\n"
        for width in BREAKS
    )
    return BASE + BLOCKS.replace("T", ".stacked") + below


STYLE = _style()
"""Style sheet of every page."""
