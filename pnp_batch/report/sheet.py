"""Contact sheets: guidance images with their translations in, one picture of them out."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pnp_batch import results
from pnp_batch.config import RunConfig
from pnp_batch.report.gallery import gallery
from pnp_batch.storage import Storage

NAME = "contact-sheet.png"
CELL, SMALL_CELL = 192, 128
GAP = 12
CAPTION = 34
LINE, CAPTION_LINES, HEAD_LINES = 15, 2, 3
COLUMNS = 2
MANY = 8  # pictures in a line that are drawn smaller
BACKGROUND, HOLE, INK, FAINT = "#ffffff", "#ececea", "#1c1c1e", "#6b6b70"


@dataclass(frozen=True)
class Drawn:
    """A line of a sheet: a guidance image and its translations.

    Attributes:
        source: the guidance image, None where it cannot be had.
        made: each translation with what is written under it; None for one that failed.
        caption: what is written under the guidance image.
    """

    source: Image.Image | None
    made: tuple[tuple[str, Image.Image | None], ...]
    caption: str = "guidance image"


def write_sheet(config: RunConfig, largest: int = 16) -> str:
    """Draws the contact sheet of an output into it.

    Args:
        config: the job that made the output.
        largest: guidance images at most.

    Returns:
        Where the picture lies.
    """
    output = Storage(config.output)
    sheet = draw_sheet(list(itertools.islice(_drawable(config, output), largest)))
    return save(sheet, output, NAME)


def save(sheet: Image.Image, place: Storage, name: str) -> str:
    """Writes a sheet; returns where it lies."""
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    place.write(name, buffer.getvalue())
    return f"{place.uri}/{name}"


def _drawable(config: RunConfig, output: Storage) -> Iterator[Drawn]:
    """The guidance images that something was made of."""
    for group in gallery(config):
        made = [row for row in group.rows if row["output"]]
        if group.source is not None and made:
            yield Drawn(group.source, tuple((r["prompt"], opened(output, r)) for r in made))


def opened(output: Storage, row: Mapping[str, Any]) -> Image.Image:
    """The picture of a recorded row."""
    return Image.open(io.BytesIO(results.picture(output, row))).convert("RGB")


def draw_sheet(
    groups: Sequence[Drawn], heads: Sequence[str] = (), columns: int = COLUMNS
) -> Image.Image:
    """Draws guidance images with their translations to the right.

    Args:
        groups: the lines, each as wide as the longest.
        heads: what stands above the translations of all lines.
        columns: lines beside each other.
    """
    across = 1 + max((len(group.made) for group in groups), default=0)
    side = CELL if across <= MANY else SMALL_CELL
    width, height = across * (side + GAP) + GAP, side + CAPTION + GAP
    columns = min(columns, max(1, len(groups)))
    lines = -(-len(groups) // columns)
    top = GAP + LINE * max((len(_wrapped(head, side, HEAD_LINES)) for head in heads), default=0)
    whole = columns * (width + GAP) - GAP, lines * height + top
    sheet = Image.new("RGB", whole, BACKGROUND)
    pen = _Pen(sheet, side)
    for place, head in enumerate(heads, 1):
        pen.write(GAP + place * (side + GAP), GAP // 2, _wrapped(head, side, HEAD_LINES), INK)
    for index, group in enumerate(groups):
        left = (index % columns) * (width + GAP) + GAP
        down = (index // columns) * height + top
        pen.cell(left, down, group.source, group.caption, INK if heads else FAINT)
        for place, (caption, picture) in enumerate(group.made, 1):
            pen.cell(left + place * (side + GAP), down, picture, caption, INK)
    return sheet


class _Pen:
    """Draws pictures of one size, and texts under them."""

    def __init__(self, sheet: Image.Image, side: int) -> None:
        self._sheet = sheet
        self._side = side
        self._draw = ImageDraw.Draw(sheet)

    def cell(
        self, left: int, top: int, picture: Image.Image | None, caption: str, ink: str
    ) -> None:
        """A picture with its caption; an empty place where there is none."""
        side = self._side
        if picture is None:
            self._draw.rectangle((left, top, left + side - 1, top + side - 1), fill=HOLE)
        else:
            # Small working images are enlarged without blur, so that the sheet shows what was made.
            small = picture.width < side
            how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
            self._sheet.paste(picture.resize((side, side), how), (left, top))
        self.write(left, top + side + 3, _wrapped(caption, side, CAPTION_LINES), ink)

    def write(self, left: int, top: int, lines: Sequence[str], ink: str) -> None:
        """Lines of text under each other."""
        for number, line in enumerate(lines):
            self._draw.text((left, top + LINE * number), line, fill=ink, font=_font())


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)


def _wrapped(text: str, wide: int, most: int) -> list[str]:
    """A text in so many lines at most; where something does not fit, that ends with `…`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font().getlength(longer) <= wide or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = [*lines[: most - 1], f"{lines[most - 1]}…"] if len(lines) > most else lines
    return [_cut(line, wide) for line in kept]


def _cut(line: str, wide: int) -> str:
    if _font().getlength(line) <= wide:
        return line
    kept = line.rstrip("…")
    while kept and _font().getlength(f"{kept}…") > wide:
        kept = kept[:-1]
    return f"{kept}…"
