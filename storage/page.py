"""One-page HTML reports that need nothing else: no script, no network, dark and light.

Everything that is not `Html` already is escaped, so names from a store or a folder can't become
markup; the page's own policy forbids scripts and any address but its own data.
"""

from __future__ import annotations

import base64
import html
import unicodedata
from collections.abc import Iterable, Sequence

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --pale: #5d6878; --page: #ffffff;
  --panel: #f4f6f9; --line: #d5dbe4; --mark: #2f6fb8; --soft: #a9c8ea; --good: #1d7a3c;
  --bad: #b3372b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --pale: #9aa5b5; --page: #14181e;
  --panel: #1d232b; --line: #38424f; --mark: #6aa9ee; --soft: #34557c; --good: #63c483;
  --bad: #ef8478; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .25rem 0 .75rem; max-width: 60rem; } .pale { color: var(--pale); }
.good { color: var(--good); } .bad { color: var(--bad); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); }
figure { margin: 0; padding: .75rem; background: var(--panel); border-radius: .5rem; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: .25rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; max-width: 32rem; unicode-bidi: isolate; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg .axis { stroke: var(--line); } svg .tick { fill: var(--pale); }
svg .bar { fill: var(--mark); } svg .curve { fill: none; stroke-width: 2; }
"""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as escaped text; characters that can't be seen are spelt out.

    Control and direction characters could make a name look like another one, and lone surrogates
    (file names that aren't Unicode) have no UTF-8.
    """
    if isinstance(value, Html):
        return value
    return Html(html.escape(printable(str(value))))


def printable(value: str) -> str:
    """The same text with every invisible character as its escape."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in value
    )


def shorten(value: str, columns: int) -> str:
    """Cut to a width in columns (wide characters count two), with an ellipsis where cut."""
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in value]
    if sum(widths) <= columns:
        return value
    kept, used = 0, 1
    while kept < len(value) and used + widths[kept] <= columns:
        used += widths[kept]
        kept += 1
    return value[:kept].rstrip() + "…"


def element(name: str, /, *content: object, **attributes: object) -> Html:
    """`<name attributes>content</name>`. A trailing underscore of an attribute is dropped, others
    become hyphens; an attribute of None is left out."""
    inner = "".join(text(part) for part in content)
    return Html(f"<{name}{_attributes(attributes)}>{inner}</{name}>")


def void(name: str, /, **attributes: object) -> Html:
    """An element without an end tag, such as img."""
    return Html(f"<{name}{_attributes(attributes)}>")


def _attributes(values: dict[str, object]) -> str:
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(value)}"'
        for name, value in values.items()
        if value is not None
    )


def join(parts: Iterable[object]) -> Html:
    """Several parts after one another."""
    return Html("".join(text(part) for part in parts))


def data_uri(content: bytes, media_type: str) -> str:
    """A file inside the page."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[int] = ()
) -> Html:
    """A table; the columns named in `numbers` are aligned right."""

    def cells(kind: str, row: Sequence[object]) -> Html:
        return element("tr", *(
            element(kind, value, class_="number" if column in numbers else None)
            for column, value in enumerate(row)
        ))  # fmt: skip

    body = join(cells("td", row) for row in rows)
    inner = element("thead", cells("th", header)) + element("tbody", body)
    return element("div", element("table", Html(inner)), class_="wide")


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """Names and values, one pair a line."""
    inner = join(element("tr", element("th", name), element("td", value)) for name, value in rows)
    return element("div", element("table", element("tbody", inner)), class_="wide")


def section(title: str, *content: object) -> Html:
    """A heading and what stands below it."""
    return element("section", element("h2", title), *content)


def figure(caption: str, *content: object) -> Html:
    """A chart or picture with its caption."""
    return element("figure", element("figcaption", caption), *content)


def grid(figures: Iterable[Html]) -> Html:
    """Figures beside one another as far as the window allows."""
    return element("div", join(figures), class_="grid")


def page(title: str, *content: object, style: str = "") -> str:
    """The whole document.

    Args:
        style: more rules for the style sheet; written by programmers, never from data.
    """
    head = join([
        void("meta", charset="utf-8"),
        void("meta", http_equiv="Content-Security-Policy", content=POLICY),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(_STYLE + style)),
    ])  # fmt: skip
    body = element("body", element("h1", title), *content)
    return f'<!DOCTYPE html>\n<html lang="en">{element("head", head)}\n{body}</html>\n'
