"""Pictures of the vocabulary, one small sprite for each emoji, and a canvas to set them on.

The sprites lie in `envs/emoji.png`, so that nobody needs an emoji font, row by row in the order of the vocabulary;
`envs/EMOJI-LICENCE.md` says where they come from. After the vocabulary has grown,
`python -m envs.sprites --pictures FOLDER` draws them again.
"""

import argparse
import functools
import pathlib
import sys
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from envs import tokens

ATLAS: Final = pathlib.Path(__file__).with_name("emoji.png")
"""The atlas of the vocabulary."""

CELL: Final = 72
"""Width and height of a sprite in the atlas, pixels."""

COLUMNS: Final = 8
"""Sprites in a row of the atlas."""

SAMPLES: Final = 2
"""Pixels of a canvas along each side of a pixel of its picture."""

INK: Final = "#1c1c22"
"""Colour of words."""

Point = tuple[float, float] | np.ndarray
"""Right and down from the corner left above."""

_KEY = "Vocabulary"


@functools.cache
def atlas() -> Image.Image:
    """The atlas, RGBA.

    Raises:
        ValueError: if it was drawn for another vocabulary.
    """
    with Image.open(ATLAS) as image:
        drawn = image.info.get(_KEY)
        if drawn != "".join(tokens.VOCABULARY):
            raise ValueError(f"{ATLAS}: drawn for another vocabulary; run python -m envs.sprites --pictures FOLDER")
        return image.convert("RGBA")


@functools.lru_cache(maxsize=512)
def _scaled(token: int, size: int) -> Image.Image:
    left, top = token % COLUMNS * CELL, token // COLUMNS * CELL
    cell = atlas().crop((left, top, left + CELL, top + CELL))
    return cell.resize((size, size), Image.Resampling.LANCZOS)


def sprite(token: int, size: int = CELL) -> Image.Image:
    """The picture of a token, RGBA, size × size pixels; the caller may draw on it.

    Raises:
        ValueError: if the token lies outside the vocabulary, or the size is not positive.
    """
    if not 0 <= token < tokens.SIZE:
        raise ValueError(f"token {token} is not in the vocabulary of {tokens.SIZE} emoji")
    if size < 1:
        raise ValueError(f"size={size}: a sprite needs at least 1 pixel")
    return _scaled(int(token), int(size)).copy()


class Canvas:
    """A white image in units of a pixel at scale 1, drawn larger and then reduced, so that all edges are smooth.

    Points are pairs (x, y).
    """

    def __init__(self, width: int, height: int, scale: float = 1.0):
        self.unit = SAMPLES * scale
        self.size = (round(width * scale), round(height * scale))
        self.image = Image.new("RGBA", (self.size[0] * SAMPLES, self.size[1] * SAMPLES), "white")
        self.pen = ImageDraw.Draw(self.image)

    def finish(self) -> Image.Image:
        """What has been drawn, RGB."""
        return self.image.resize(self.size, Image.Resampling.BOX).convert("RGB")

    def text(self, at: Point, words: str, size: float = 13, colour: str = INK, bold: bool = False, anchor="lm") -> None:
        """Words with their left end, half way up, at a point, or as Pillow's `anchor` says."""
        self.pen.text(self._pixels(at), words, colour, _font(round(size * self.unit), bold), anchor)

    def text_width(self, words: str, size: float, bold: bool = False) -> float:
        return _font(round(size * self.unit), bold).getlength(words) / self.unit

    def sprite(self, centre: Point, token: int, size: float, opacity: float = 1.0) -> None:
        picture = sprite(token, max(round(size * self.unit), 1))
        if opacity < 1:
            picture.putalpha(picture.getchannel("A").point([round(alpha * opacity) for alpha in range(256)]))
        x, y = self._pixels(centre)
        self.image.alpha_composite(picture, (round(x - picture.width / 2), round(y - picture.height / 2)))

    def box(
        self, corner: Point, width: float, height: float, fill: str, line: str = "", thick: float = 0, radius: float = 0
    ) -> None:
        """A rectangle, its first corner left above, with a line of colour `line` and corners of a radius."""
        left, top = self._pixels(corner)
        edges = (left, top, left + width * self.unit, top + height * self.unit)
        self.pen.rounded_rectangle(edges, radius * self.unit, fill, line or None, round(thick * self.unit))

    def disc(self, centre: Point, radius: float, fill: str, line: str) -> None:
        self.pen.circle(self._pixels(centre), radius * self.unit, fill, line, round(self.unit))

    def arrow(
        self,
        start: np.ndarray,
        end: np.ndarray,
        colour: str,
        width: float,
        dash: float = 0,
        head: float = 0,
        pen: ImageDraw.ImageDraw | None = None,
    ) -> None:
        """A round-ended line, with dashes and a head of the given lengths, on the canvas or on a layer's pen."""
        length = float(np.hypot(*(end - start)))
        if length == 0:
            return
        pen = pen or self.pen
        way = (end - start) / length
        stop = length - 0.8 * head
        count = max(round((stop / dash + 1) / 2), 1) if dash else 1
        step = stop / (2 * count - 1)
        for index in range(count):
            ends = [self._pixels(start + way * step * at) for at in (2 * index, 2 * index + 1)]
            pen.line(ends, colour, round(width * self.unit))
            for point in ends:
                pen.circle(point, width * self.unit / 2, colour)
        if head:
            side = 0.6 * head * np.array([-way[1], way[0]])
            corners = (end, end - way * head + side, end - way * head - side)
            pen.polygon([self._pixels(corner) for corner in corners], colour)

    def _pixels(self, point: Point) -> tuple[float, float]:
        return float(point[0]) * self.unit, float(point[1]) * self.unit


@functools.cache
def _font(pixels: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it comes with Matplotlib, so that no font of the system is needed."""
    import matplotlib  # late, for who draws nothing

    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf", max(pixels, 1))


def write_atlas(folder: str | pathlib.Path, path: pathlib.Path = ATLAS) -> None:
    """Draw the vocabulary's atlas into a PNG file, which names the vocabulary it was drawn for.

    Args:
        folder: with a square picture in colour of every emoji, named as those of Noto Emoji are, `emoji_u1f34e.png`.
        path: of the file.

    Raises:
        ValueError: if a picture is missing, is none, or is the same as another's.
    """
    sheet = Image.new("RGBA", (COLUMNS * CELL, -(-tokens.SIZE // COLUMNS) * CELL))
    drawn: dict[bytes, str] = {}
    for index, character in enumerate(tokens.VOCABULARY):
        picture = pathlib.Path(folder, f"emoji_u{ord(character):04x}.png")
        try:
            with Image.open(picture) as image:
                cell = image.convert("RGBA").resize((CELL, CELL), Image.Resampling.LANCZOS)
        except OSError as error:
            raise ValueError(f"{picture}: no picture of {character} ({error})") from error
        twin = drawn.setdefault(cell.tobytes(), character)
        if twin != character:
            raise ValueError(f"{picture}: draws {character} (U+{ord(character):04X}) like {twin}")
        sheet.paste(cell, (index % COLUMNS * CELL, index // COLUMNS * CELL))
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt(_KEY, "".join(tokens.VOCABULARY))
    notes.add_text("Source", "Noto Emoji, Google, Apache License 2.0; see EMOJI-LICENCE.md")
    sheet.save(path, optimize=True, pnginfo=notes)


def main() -> None:
    """Draw the atlas again; one line on standard error and exit status 2 if that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m envs.sprites", description="Draw envs/emoji.png again.")
    parser.add_argument("--pictures", required=True, metavar="FOLDER", help="png/128 of Noto Emoji")
    arguments = parser.parse_args()
    try:
        write_atlas(arguments.pictures)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{ATLAS}: {tokens.SIZE} emoji, {ATLAS.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
