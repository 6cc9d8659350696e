"""Sample manifests: pictures that no training ever saw, with prompts in the captions' words."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pnp_batch.world import benchmark
from pnp_batch.world.benchmark import Case
from pnp_batch.world.captions import caption
from pnp_batch.world.case import as_json, case_of, may_change
from pnp_batch.world.drawing import draw, recast
from pnp_batch.world.spec import COLOURS, OBJECTS, RENDITIONS, SCENES, Spec, random_spec

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("prompt", pa.list_(pa.string())),
        ("kind", pa.string()),
        ("source_caption", pa.string()),
        ("world", pa.string()),
        ("mask", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)
"""A manifest of drawn pictures; the last four columns are for those who score translations.

`kind` tells rows apart in summaries. `source_caption` says what the picture shows, as a
`source_prompt` would, but shapes no picture. `world` is the spec, and `mask`, a PNG, is white where
a translation may change the picture.
"""

SHOWN = (
    (
        "house",
        "red",
        "grass",
        "flat",
        "an oil painting of a red house on grass",
        "a flat drawing of a red house in the snow",
    ),
    (
        "cat",
        "orange",
        "snow",
        "flat",
        "a neon sign of an orange cat in the snow",
        "a flat drawing of a blue cat in the snow",
    ),
    (
        "boat",
        "green",
        "sea",
        "flat",
        "an oil painting of a green boat at sunset",
        "pixel art of a green boat at the sea",
    ),
    (
        "car",
        "blue",
        "desert",
        "flat",
        "a flat drawing of a red car at night",
        "a blueprint of a car in the desert",
    ),
    (
        "castle",
        "pink",
        "night",
        "sketch",
        "a flat drawing of a pink castle at sunset",
        "an oil painting of a green castle on grass",
    ),
    (
        "balloon",
        "yellow",
        "sunset",
        "oil",
        "a flat drawing of a purple balloon at sunset",
        "a pencil sketch of a balloon at sunset",
    ),
    (
        "mushroom",
        "red",
        "grass",
        "sketch",
        "a flat drawing of a red mushroom on grass",
        "a neon sign of a pink mushroom at night",
    ),
    (
        "rocket",
        "white",
        "night",
        "flat",
        "a blueprint of a rocket at night",
        "an oil painting of a red rocket in the desert",
    ),
)
"""Object, colour, scene, rendition and two prompts of each picture of the shipped sample."""


SHIPPED = Path(__file__).parents[1] / "demo" / "sample.parquet"


def opened(data: bytes) -> Image.Image:
    """The picture in PNG bytes, as RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def png(image: Image.Image) -> bytes:
    """A picture as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def row(name: str, spec: Spec, prompts: list[str], resolution: int = 64) -> dict[str, object]:
    """One row of a manifest: id, picture and prompts."""
    image = {"bytes": png(draw(spec, resolution).image), "path": f"{name}.png"}
    return {"row_id": name, "image": image, "prompt": prompts}


def scored_row(name: str, spec: Spec, prompts: list[str], kind: str) -> dict[str, object]:
    """The same with all columns of `SCHEMA`; prompts must be captions of the picture's object."""
    world = as_json(spec)
    masks = [may_change(case_of(world, prompt)) for prompt in prompts]
    mask = Image.fromarray(np.any(masks, axis=0)).convert("L")
    return {
        **row(name, spec, prompts),
        "kind": kind,
        "source_caption": caption(spec),
        "world": world,
        "mask": {"bytes": png(mask), "path": f"{name}-mask.png"},
    }


def write(rows: Iterable[dict[str, object]], path: Path) -> None:
    """Writes rows as one Parquet file of `SCHEMA`; columns that a row lacks are null."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), path)


def benchmark_manifest(path: Path, pairs: int) -> None:
    """Writes the first pairs of the held-out benchmark as a manifest, one row each."""
    write(rows_of(benchmark.cases(pairs)), path)


def rows_of(cases: Iterable[Case]) -> Iterator[dict[str, object]]:
    """The pairs of a benchmark as rows of a manifest."""
    for case in cases:
        yield scored_row(case.name, case.source, [case.prompt], case.kind)


def shown_rows() -> list[dict[str, object]]:
    """The eight rows of the sample that ships with the package."""
    rows = []
    for name, colour, scene, rendition, *prompts in SHOWN:
        rng = random.Random(f"sample/{name}")
        spec = random_spec(
            rng,
            object=name,
            colour=colour,
            scene=scene,
            rendition=rendition,
            size=rng.uniform(0.34, 0.4),
        )
        rows.append(scored_row(name, spec, prompts, kind=rendition))
    return rows


def many_rows(count: int, seed: int = 0, resolution: int = 64) -> Iterable[dict[str, object]]:
    """Any number of rows, drawn one at a time: random pictures, each with one changing prompt."""
    rng = random.Random(f"many/{seed}")
    for k in range(count):
        spec = random_spec(rng)
        change = rng.choice(
            (
                {"rendition": rng.choice(RENDITIONS[:3])},
                {"scene": rng.choice(SCENES)},
                {"colour": rng.choice(list(COLOURS)[:8]), "rendition": "flat"},
            )
        )
        name = f"{OBJECTS.index(spec.object):02d}-{spec.object}-{k:07d}"
        yield row(name, spec, [caption(recast(spec, **change))], resolution)
