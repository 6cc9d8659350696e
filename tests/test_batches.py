"""Which rows share a UNet batch: fixed shapes, little padding, nothing lost and nothing mixed."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from pnp_batch.batches import (
    PLACE,
    RECIPE,
    Place,
    Shape,
    cuts,
    ordered,
    pack,
    places,
    with_places,
)

METHODS = ("pnp", "sdedit")
SHARED = ("{}", '{"pnp_f_t": 0.5}', '{"pnp_f_t": 0.8}', None)


@dataclass(frozen=True)
class Row:
    row_id: str
    guidance: str
    recipe: tuple
    place: Place


def manifest(rng, images=30, most=12):
    """Rows of random images in a random order, each image with its own number of prompts."""
    rows = []
    for image in range(rng.randint(1, images)):
        for _ in range(rng.randint(1, most)):
            recipe = (rng.choice(METHODS), rng.choice(SHARED))
            rows.append({"guidance": f"image {image}", **dict(zip(RECIPE, recipe, strict=True))})
    rng.shuffle(rows)
    schema = [("row_id", pa.string()), ("guidance", pa.string()), ("method", pa.string())]
    schema += [(name, pa.string()) for name in RECIPE[1:]]
    numbered = [{"row_id": str(n), **row} for n, row in enumerate(rows)]
    return pa.Table.from_pylist(numbered, pa.schema(schema))


def simple(*prompts):
    """A manifest of one recipe with this many rows for each image."""
    guidance = [f"image {i}" for i, count in enumerate(prompts) for _ in range(count)]
    fixed = {"method": ["pnp"], "shared": ['{"pnp_f_t": 0.8}']}
    columns = {name: values * len(guidance) for name, values in fixed.items()}
    row_ids = [str(n) for n in range(len(guidance))]
    return pa.table({"row_id": row_ids, "guidance": guidance, **columns})


def packable(table):
    return [
        Row(
            row["row_id"],
            row["guidance"],
            tuple(row[name] for name in RECIPE),
            Place(*(row[name] for name in PLACE)),
        )
        for row in table.to_pylist()
    ]


def shapes(table):
    return {row.row_id: row.place.shape for row in packable(table)}


def cells(grids):
    """For each row the shape of its batch and its cell there."""
    return {
        row.row_id: (grid.shape, cell)
        for grid in grids
        for cell, row in enumerate(grid.cells)
        if row is not None
    }


def in_order(table, batch_size):
    """Placed rows in the order of a run, and a number for the image of each."""
    placed = with_places(table, batch_size)
    names = placed["guidance"].to_pylist()
    image = np.array([names.index(name) for name in names])
    order = ordered(image, placed["share"].to_numpy())
    return placed.take(pa.array(order)), image[order]


def cut(table, batch_size, wanted, workers=1):
    placed, image = in_order(table, batch_size)
    share, images = (placed[name].to_numpy() for name in ("share", "images"))
    ends = cuts(image, share, images, wanted, workers)
    return [placed.slice(a, b - a) for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("seed", range(10))
def test_shapes_do_not_depend_on_the_order_of_rows(seed):
    rng = random.Random(seed)
    table, size = manifest(rng), rng.choice([1, 2, 3, 8, 16])
    shuffled = table.take(pa.array(rng.sample(range(len(table)), len(table))))
    assert shapes(with_places(table, size)) == shapes(with_places(shuffled, size))


@pytest.mark.parametrize("seed", range(15))
def test_packing_keeps_every_row_once_within_its_shape(seed):
    rng = random.Random(seed)
    size = rng.choice([1, 2, 3, 8, 16])
    table = with_places(manifest(rng), size)
    left = table.filter(pa.array([rng.random() < 0.7 for _ in range(len(table))]))
    for rows in (packable(table), packable(left)):
        packed = Counter()
        for grid in pack(rows):
            flat = [row for slot in grid.slots for row in slot]
            assert flat
            assert len(grid.cells) == grid.shape.rows <= size
            assert len(grid.slots) == grid.shape.images
            assert all(len({row.guidance for row in slot}) <= 1 for slot in grid.slots)
            assert len({row.recipe for row in flat}) == 1
            assert {row.place.shape for row in flat} == {grid.shape}
            packed.update(row.row_id for row in flat)
        assert packed == Counter(row.row_id for row in rows)


@pytest.mark.parametrize("seed", range(10))
def test_what_is_left_to_do_keeps_its_cells_in_the_shapes_of_the_whole_manifest(seed):
    rng = random.Random(seed)
    table = with_places(manifest(rng), 8)
    left = table.filter(pa.array([rng.random() < 0.3 for _ in range(len(table))]))
    whole, part = cells(pack(packable(table))), cells(pack(packable(left)))
    assert part == {row_id: whole[row_id] for row_id in left["row_id"].to_pylist()}


@pytest.mark.parametrize("seed", range(15))
def test_blocks_keep_every_row_once_and_in_order(seed):
    rng = random.Random(seed)
    table = manifest(rng)
    made = cut(table, rng.choice([1, 2, 3, 8]), rng.choice([1, 2, 5, 1000]))
    assert all(len(block) for block in made)
    found = [row_id for block in made for row_id in block["row_id"].to_pylist()]
    assert sorted(found, key=int) == table["row_id"].to_pylist()


@pytest.mark.parametrize("seed", range(15))
def test_blocks_keep_the_rows_of_an_image_together_unless_they_are_too_many(seed):
    rng = random.Random(seed)
    table = manifest(rng)
    wanted = rng.choice([1, 2, 5, 1000])
    target = max(1, -(-len(table) // wanted))
    size = rng.choice([1, 2, 8])
    made = cut(table, size, wanted)
    rows_of = Counter(table["guidance"].to_pylist())
    blocks_of = Counter(name for block in made for name in set(block["guidance"].to_pylist()))
    for name, count in blocks_of.items():
        assert count == 1 or rows_of[name] >= 2 * target
    assert all(len(set(block["share"].to_pylist())) == 1 for block in made)


@pytest.mark.parametrize("wanted", [1, 3, 10, 40])
def test_the_number_of_blocks_is_about_what_is_wanted(wanted):
    made = cut(simple(*[4] * 100), 8, wanted)
    assert wanted / 2 <= len(made) <= wanted + 1
    assert len(cut(simple(1000), 8, 10)) >= 5  # one image alone is spread over workers too


def longest_wait(blocks, workers):
    """How long a worker has nothing to do while another works, in batches, if each takes the next
    block when it is free."""
    busy = [0] * workers
    for block in blocks:
        first = busy.index(min(busy))
        busy[first] += len(list(pack(packable(block))))
    return max(busy) - min(busy)


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("workers", [2, 3, 8])
def test_in_the_end_no_worker_waits_longer_than_for_one_batch(workers, size):
    waits, without = [], []
    for seed in range(12):
        rng = random.Random(seed)
        # Of one recipe, as rows of another are another batch; up to 13 batches of an image.
        prompts = rng.choice([[1, 1, 2, 3, 8, 20], [4, 4, 25]])
        table = simple(*rng.choices(prompts, k=rng.randrange(20, 120)))
        wanted = max(8 * workers, len(table) // 16)
        made = cut(table, size, wanted, workers)
        rows = [row for block in made for row in block["row_id"].to_pylist()]
        assert sorted(rows) == sorted(table["row_id"].to_pylist())
        waits.append(longest_wait(made, workers))
        without.append(longest_wait(cut(table, size, wanted), workers))
    assert max(waits) <= 1 < max(without)


@pytest.mark.parametrize("prompts", [1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize("images", [1, 2, 7, 40])
def test_padding_is_a_small_part_of_the_work(prompts, images):
    table = with_places(simple(*[prompts] * images), 8)
    rows = packable(table)
    computed = sum(grid.shape.rows for grid in pack(rows))
    batches = -(-images // max(1, 8 // min(prompts, 8)))
    whole = prompts if prompts <= 8 else 12  # 11 prompts are two batches of 6, almost full
    assert computed <= images * whole + batches * min(prompts, 8)
    if prompts <= 8:
        assert computed - len(rows) < batches * min(prompts, 8)


def test_images_of_one_recipe_fill_a_batch():
    (shape,) = set(shapes(with_places(simple(*[2] * 8), 8)).values())
    assert shape == Shape(4, 2)
    (shape,) = set(shapes(with_places(simple(*[2] * 5), 8)).values())
    assert shape == Shape(3, 2)  # 3 + 2 images, not 4 + 1 padded to 4 + 4


def test_an_image_with_more_prompts_than_a_batch_has_one_to_itself():
    (shape,) = set(shapes(with_places(simple(20), 8)).values())
    assert shape == Shape(1, 7)
    grids = pack(packable(with_places(simple(20), 8)))
    assert sorted(len(slot) for grid in grids for slot in grid.slots) == [6, 7, 7]


def test_rows_of_an_image_and_images_of_a_share_are_neighbours():
    table = simple(2, 1, 2, 1)
    table = table.take(pa.array([0, 2, 5, 3, 1, 4]))
    assert in_order(table, 8)[0]["guidance"].to_pylist() == [
        *("image 1", "image 3"),
        *("image 0", "image 0"),
        *("image 2", "image 2"),
    ]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("prompts", [1, 3])
def test_blocks_of_a_run_hold_full_batches_whatever_numbers_its_images_have(ahead, prompts):
    images = 400
    codes = random.Random(0).sample(range(images), images)  # as hashes of their names give
    table = simple(*[prompts] * images)
    image = np.repeat(np.array(codes, np.int32), prompts)
    place = places(image, np.zeros(len(image), np.int32), 8, ahead=ahead)
    inverted = place.images * place.ahead
    order = ordered(image, place.share)
    placed, names = place.on(table), image[order]
    rows = packable(placed.take(pa.array(order)))
    ends = cuts(names, place.share[order], inverted[order], 10)
    computed = sum(grid.shape.rows for a, b in itertools.pairwise(ends) for grid in pack(rows[a:b]))
    assert computed <= images * prompts * 1.1
    if ahead:
        assert set(place.ahead) == {2 * prompts}  # as many rows as two branches of each row are
    for a, b in itertools.pairwise(ends):  # images that are inverted together have their own cells
        slots = [row.place.slot for row in rows[a:b:prompts]]
        assert max(Counter(slots).values()) == -(-len(slots) // inverted[0])
