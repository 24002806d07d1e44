"""What all pages that are one HTML file have in common: the frame, the style, a card, data inside."""

from __future__ import annotations

from html import escape

STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5d6978;--paper:#fbfbf9;--card:#fff;--rule:#e2e4e8;
--c1:#2f6fd0;--c2:#c7621a;--c3:#15887a;--c4:#8a4fc4}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ee;--soft:#98a3b3;--paper:#14181e;--card:#1b2129;--rule:#323b47;
--c1:#7aa9f5;--c2:#eb9c5c;--c3:#4fc4b3;--c4:#bd92ec}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1360px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:24px;margin:0 0 2px}h2{font-size:16px;margin:0 0 8px}
p{margin:4px 0}.soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:16px;margin-top:18px}
section{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:14px 16px;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:4px 8px;border-bottom:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left}td.wide{text-align:left;white-space:normal}
small{color:var(--soft)}.note{border-left:3px solid var(--c2);padding-left:10px;margin:8px 0}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:12px}
svg path{fill:none;stroke-width:2;stroke-linejoin:round}.grid{stroke:var(--rule);stroke-width:1}
path.c1{stroke:var(--c1)}path.c2{stroke:var(--c2)}path.c3{stroke:var(--c3)}path.c4{stroke:var(--c4)}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--soft)}
.legend i{display:inline-block;width:14px;height:3px;margin-right:6px;vertical-align:middle}
rect.c1{fill:var(--c1)}rect.c2{fill:var(--c2)}rect.off{fill:var(--soft);opacity:.4}circle{fill:var(--c1)}circle.c2{fill:var(--c2)}circle.c3{fill:var(--c3)}circle.c4{fill:var(--c4)}
svg text.t1{fill:var(--c1)}svg text.t2{fill:var(--c2)}
i.c1{background:var(--c1)}i.c2{background:var(--c2)}i.c3{background:var(--c3)}i.c4{background:var(--c4)}
details{margin-top:18px}pre{overflow-x:auto;font-size:12px}
"""


def document(title: str, body: str) -> str:
    """A whole page. `title` is escaped already; `body` is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def card(title: str, content: str) -> str:
    """A framed part of a page. `content` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def embedded(json: str) -> str:
    """JSON as the content of a script element."""
    # "</script>" inside a string of the data would end the element.
    return json.replace("<", "\\u003c")
