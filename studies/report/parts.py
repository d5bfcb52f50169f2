"""What several pages share: the frame, verdict badges, sizes."""

import string
from pathlib import Path
from typing import Any
from urllib.parse import quote

from studies.report.markup import Markup, escape, join, tag

ASSETS = Path(__file__).with_name("assets")
"""Style, scripts and the frame of every page."""

_ICONS = {
    "supported": ("M3 8.5 6.5 12 13 4.5",),
    "refuted": ("M4 4 12 12", "M12 4 4 12"),
    "inconclusive": ("M3 9.5C4.5 6 6.5 6 8 8S11.5 10 13 6.5",),
}


def badge(verdict: str) -> Markup:
    """A verdict with a sign of its own, so that it is not told by colour alone."""
    icon = tag(
        "svg", *(tag("path", d=line) for line in _ICONS[verdict]), viewBox="0 0 16 16", aria_hidden="true",
        class_="icon",
    )  # fmt: skip
    return tag("span", icon, verdict, class_=f"badge {verdict}")


def page(title: str, body: Markup, scripts: tuple[str, ...] = ()) -> bytes:
    """A whole page.

    Args:
        title: of the window.
        body: header, main and footer.
        scripts: classic scripts in `assets`, run in this order after the page is read.
    """
    template = string.Template((ASSETS / "page.html").read_text(encoding="utf-8"))
    tags = join((tag("script", src=f"assets/{name}", defer=True) for name in scripts), "\n")
    return template.substitute(title=escape(title), body=body, scripts=tags).encode()


def section(identity: str, heading: str, *content: Any, class_: str | None = None) -> Markup:
    """A part of a page, named by its heading."""
    title = tag("h2", heading, id=f"{identity}-heading")
    return tag("section", title, *content, id=identity, class_=class_, aria_labelledby=f"{identity}-heading")


def link(path: str) -> str:
    """A path of the site as a URL."""
    return quote(path)


def size(count: int) -> str:
    """Bytes for people."""
    return (
        f"{count} bytes"
        if count < 1024
        else f"{count / 1024:.0f} KiB"
        if count < 1 << 20
        else f"{count / 2**20:.1f} MiB"
    )


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def figure(source: str | None, alt: str, caption: str | None = None, *, lazy: bool = False) -> Markup:
    """A picture with its words, or what stands in its place; the words alone say what it shows."""
    if source is None:
        missing = tag("p", "The figure is not here. It shows: ", alt, class_="missing")
        return tag("figure", missing)
    picture = tag("img", src=link(source), alt=alt, loading="lazy" if lazy else None)
    return tag(
        "figure",
        tag("a", picture, href=link(source), class_="paper"),
        tag("figcaption", caption) if caption else None,
    )


FOOTER = tag(
    "footer",
    tag(
        "p",
        "emojimaze. Nothing on these pages is loaded from a network. The emoji are Google's Noto Color Emoji, "
        "SIL Open Font Licence 1.1.",
    ),
    class_="site",
)
"""Below every page."""
