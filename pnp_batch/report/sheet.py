"""The contact sheet: an output in, one picture out, each guidance image beside its translations."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pnp_batch import results
from pnp_batch.config import RunConfig
from pnp_batch.report.gallery import gallery
from pnp_batch.storage import Storage

NAME = "contact-sheet.png"
CELL = 192
GAP = 12
CAPTION = 34
COLUMNS = 2
BACKGROUND, INK, FAINT = "#ffffff", "#1c1c1e", "#6b6b70"


@dataclass(frozen=True)
class Drawn:
    """One guidance image and its translations, each with the prompt it followed."""

    source: Image.Image
    made: tuple[tuple[str, Image.Image], ...]


def write_sheet(config: RunConfig, largest: int = 16) -> str:
    """Draws the contact sheet of an output into it.

    Args:
        config: the job that made the output.
        largest: guidance images at most.

    Returns:
        Where the picture lies.
    """
    output = Storage(config.output)
    buffer = io.BytesIO()
    draw_sheet(list(itertools.islice(_drawable(config, output), largest))).save(buffer, "png")
    output.write(NAME, buffer.getvalue())
    return f"{output.uri}/{NAME}"


def _drawable(config: RunConfig, output: Storage) -> Iterator[Drawn]:
    """The guidance images that something was made of."""
    for group in gallery(config):
        made = [row for row in group.rows if row["output"]]
        if group.source is not None and made:
            yield Drawn(group.source, tuple((r["prompt"], _opened(output, r)) for r in made))


def _opened(output: Storage, row: Mapping[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(results.picture(output, row))).convert("RGB")


def draw_sheet(groups: Sequence[Drawn]) -> Image.Image:
    """Draws guidance images with their translations to the right, prompts underneath."""
    across = 1 + max((len(group.made) for group in groups), default=0)
    width, height = across * (CELL + GAP) + GAP, CELL + CAPTION + GAP
    columns = min(COLUMNS, max(1, len(groups)))
    lines = -(-len(groups) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP), lines * height + GAP), BACKGROUND)
    for index, group in enumerate(groups):
        left = (index % columns) * (width + GAP) + GAP
        top = (index // columns) * height + GAP
        _cell(sheet, left, top, group.source, "guidance image", FAINT)
        for place, (prompt, picture) in enumerate(group.made, 1):
            _cell(sheet, left + place * (CELL + GAP), top, picture, prompt, INK)
    return sheet


def _cell(
    sheet: Image.Image, left: int, top: int, picture: Image.Image, caption: str, ink: str
) -> None:
    # Small working images are enlarged without blur, so that the sheet shows what was made.
    enlarge = Image.Resampling.NEAREST if picture.width < CELL else Image.Resampling.LANCZOS
    sheet.paste(picture.resize((CELL, CELL), enlarge), (left, top))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, line in enumerate(_wrapped(caption, draw, font)[:2]):
        draw.text((left, top + CELL + 3 + 15 * number), line, fill=ink, font=font)


def _wrapped(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= CELL or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
