"""The picture of an inspection: a section each for features, self-attention and words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont

from pnp_batch.inspection.inspection import Inspection, Map

CELL, GAP, LINE = 104, 8, 15
MARGIN = 14
# Columns of a line; what is more goes on below.
ACROSS = 8
BACKGROUND, INK, FAINT = "#ffffff", "#1c1c1e", "#6b6b70"
TITLE, TEXT, LONGEST = 17, 12, 300
# From least to most: dark violet, red, yellow, white.
HEAT = ((13, 8, 60), (125, 30, 110), (225, 85, 60), (250, 190, 60), (252, 255, 230))


@dataclass(frozen=True)
class Column:
    """One map of every image; `captions` stand under them, if there are any."""

    heads: tuple[str, str]
    maps: tuple[Image.Image, ...]
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A title, what it means, and its columns."""

    title: str
    note: str
    columns: tuple[Column, ...]


def draw_sheet(found: Inspection, names: Sequence[str]) -> Image.Image:
    """Draws an inspection: rows are images, each above its name; columns are what was found.

    Small maps are enlarged without blur, so that the picture shows how fine they are.
    """
    images = Column(("", ""), found.pictures, tuple(names))
    bands = [
        ("" if begun else section.title, section.note, (images, *columns))
        for section in _sections(found)
        for begun in range(0, len(section.columns), ACROSS)
        for columns in [section.columns[begun : begun + ACROSS]]
    ]
    across = max(len(columns) for _, _, columns in bands)
    heights = [_height(title, len(names)) for title, _, _ in bands]
    size = (2 * MARGIN + across * (CELL + GAP) - GAP, 2 * MARGIN + sum(heights))
    pen, top = _Pen(Image.new("RGB", size, BACKGROUND)), MARGIN
    for (title, note, columns), height in zip(bands, heights, strict=True):
        if title:
            pen.text((MARGIN, top), title, INK, TITLE)
            pen.text((MARGIN, top + TITLE + 4), note, FAINT)
        begun = top + _height(title, 0) - GAP
        for place, column in enumerate(columns):
            pen.column(MARGIN + place * (CELL + GAP), begun, column)
        top += height
    return pen.sheet


def _height(title: str, rows: int) -> int:
    """Of a band: its title, if it has one, the heads of its columns, and rows of cells."""
    titled = TITLE + LINE + 12 if title else 0
    return titled + 2 * LINE + 3 + rows * (CELL + LINE + 3) + GAP


def _sections(found: Inspection) -> Iterator[Section]:
    yield Section(
        "Features",
        "principal components 1, 2, 3 as red, green, blue; of all images together",
        tuple(
            Column(_heads(m), tuple(_coloured(colours) for colours in m.colours))
            for m in found.features
        ),
    )
    yield Section(
        "Self-attention",
        "principal components of each image's own attention maps, mean of the heads",
        tuple(
            Column(
                _heads(same[0], explained=False),
                tuple(_coloured(m.colours[0]) for m in same),
                tuple(_explained(m) for m in same),
            )
            for same in zip(*found.self_attention, strict=True)
        ),
    )
    layers = ", ".join(map(str, found.word_layers))
    yield Section(
        "Cross-attention",
        f"where each word of the prompt acts; mean of layers {layers}, their heads and timesteps",
        tuple(
            Column(
                (same[0].word, f"{same[0].tokens} token" + "s" * (same[0].tokens > 1)),
                tuple(_heated(w.heat) for w in same),
                tuple(f"{w.share:.1%} of attention" for w in same),
            )
            for same in zip(*found.words, strict=True)
        ),
    )


def _heads(m: Map, *, explained: bool = True) -> tuple[str, str]:
    first = f"t {m.timestep}, layer {m.layer}"
    return first, _explained(m) if explained else f"{m.colours.shape[1]} x {m.colours.shape[2]}"


def _explained(m: Map) -> str:
    return " + ".join(f"{100 * share:.0f}" for share in m.explained) + " %"


def _coloured(colours: torch.Tensor) -> Image.Image:
    return Image.fromarray((colours * 255).round().to(torch.uint8).numpy())


def _heated(heat: torch.Tensor) -> Image.Image:
    anchors = torch.tensor(HEAT, dtype=torch.float32)
    place = heat.clamp(0, 1) * (len(HEAT) - 1)
    low = place.long().clamp_max(len(HEAT) - 2)
    share = (place - low)[..., None]
    return _coloured((anchors[low] * (1 - share) + anchors[low + 1] * share) / 255)


class _Pen:
    """Draws on a sheet."""

    def __init__(self, sheet: Image.Image) -> None:
        self.sheet = sheet
        self._draw = ImageDraw.Draw(sheet)

    def column(self, left: int, top: int, column: Column) -> None:
        """A column's heads end above `top`, its cells begin there, each with its caption below."""
        for number, head in enumerate(column.heads):
            ink = FAINT if number else INK
            self.text((left, top - (2 - number) * LINE - 3), head, ink, width=CELL)
        for number, picture in enumerate(column.maps):
            place = top + number * (CELL + LINE + 3)
            small = picture.width < CELL
            how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
            self.sheet.paste(picture.resize((CELL, CELL), how), (left, place))
            if column.captions:
                self.text((left, place + CELL), column.captions[number], FAINT, width=CELL)

    def text(
        self, place: tuple[int, int], text: str, ink: str, size: int = TEXT, width: int = 0
    ) -> None:
        """One line, cut where it would be wider than `width`, by default than the sheet."""
        font = ImageFont.load_default(size)
        width = width or self.sheet.width - MARGIN - place[0]
        line = "".join(c if c.isprintable() else "?" for c in text[:LONGEST])
        shown = line
        while shown and self._draw.textlength(shown, font=font) > width:
            line = line[:-1]
            shown = line + "..."
        self._draw.text(place, shown, fill=ink, font=font)
