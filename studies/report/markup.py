"""HTML that is safe by construction: what is not markup already is escaped.

A study's texts come from a file that anybody may have written, so that nothing of them may become a tag.
"""

import html
import re
from collections.abc import Iterable
from typing import Any

VOID = frozenset({"img", "input", "link", "meta"})
"""Elements without an end tag."""

_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(value: Any) -> Markup:
    """A value as HTML; only `Markup` stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def join(parts: Iterable[Any], between: str = "") -> Markup:
    """Parts one after the other; None is left out."""
    return Markup(escape(between).join(escape(part) for part in parts if part is not None))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: its content; None is left out.
        attributes: None and False are left out, True stands alone; `class_` is class, `aria_label` aria-label.
    """
    told = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        told.append(f" {key}" if value is True else f' {key}="{escape(value)}"')
    start = f"<{name}{''.join(told)}>"
    return Markup(start if name in VOID else f"{start}{join(children)}</{name}>")


def source(text: str) -> Markup:
    """A source, its arXiv numbers as links."""
    parts = _ARXIV.split(text)  # text, number, text, …
    return join(
        tag("a", f"arXiv {part}", href=f"https://arxiv.org/abs/{part}", rel="noreferrer") if index % 2 else part
        for index, part in enumerate(parts)
    )


def table(headers: Iterable[Any], rows: Iterable[Iterable[Any]], caption: str, numeric: frozenset[int]) -> Markup:
    """A table whose first column names the row; columns in `numeric` are set to the right. It scrolls by itself."""
    headers = list(headers)

    def side(column: int) -> str | None:
        return "number" if column in numeric else None

    head = tag("tr", *(tag("th", name, scope="col", class_=side(at)) for at, name in enumerate(headers)))
    body = [
        tag("tr", *(
            tag("td", cell, class_=side(at)) if at else tag("th", cell, scope="row") for at, cell in enumerate(row)
        ))
        for row in rows
    ]  # fmt: skip
    whole = tag("table", tag("caption", caption, class_="unseen"), tag("thead", head), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)
