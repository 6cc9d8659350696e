"""Rows: identity, seed, parameters and guidance follow from a manifest row and nothing else."""

from __future__ import annotations

import datetime
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnp_batch import manifest, methods
from pnp_batch.config import RunConfig
from pnp_batch.identity import derived_seed
from pnp_batch.rows import EXTRA, SCHEMA, expand

METHODS = {name: methods.get(name) for name in ("pnp", "sdedit")}


@pytest.fixture
def rows_of(tmp_path):
    """`rows_of(rows, **config)`: the output rows of manifest rows, by way of a JSON Lines file."""

    def rows_of(rows, **config):
        path = tmp_path / "m.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return expanded(path, **config).to_pylist()

    return rows_of


def expanded(path, **config):
    read = manifest.read(str(path))
    job = RunConfig(manifest=str(path), output="out", **config)
    return pa.concat_tables(expand(read, job, METHODS))


def row(**values):
    return {"image": "a.png", "prompt": "a cat", **values}


def ids(rows):
    return [made["row_id"] for made in rows]


def test_default_ids_are_the_same_from_every_format(tmp_path):
    rows = [row(), row(), row(prompt="a dog", seed=3, guidance_scale=7.0, label="x", n=4)]
    names = ["image", "prompt", "seed", "guidance_scale", "label", "n"]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    lines = [",".join(str(r.get(name, "")) for name in names) for r in rows]
    (tmp_path / "m.csv").write_text("\n".join([",".join(names), *lines, ""]))
    table = pa.table({name: [r.get(name) for r in rows] for name in names})
    pq.write_table(table, tmp_path / "m.parquet")
    pq.write_table(table.select(names[::-1]), tmp_path / "turned.parquet")
    found = [
        expanded(tmp_path / name).select(["row_id", "row_hash", "seed"]).to_pylist()
        for name in ("m.jsonl", "m.csv", "m.parquet", "turned.parquet")
    ]
    assert found[0] == found[1] == found[2] == found[3]


def test_default_ids_do_not_depend_on_the_order_of_rows(rows_of):
    rows = [row(prompt=f"prompt {n // 2}") for n in range(20)]  # each of them twice
    shuffled = random.Random(1).sample(rows, len(rows))
    assert len(set(ids(rows_of(rows)))) == 20
    assert sorted(ids(rows_of(rows))) == sorted(ids(rows_of(shuffled)))


def test_identical_rows_have_ids_of_their_own(rows_of):
    first, second, third = ids(rows_of([row()] * 3))
    assert (second, third) == (f"{first}-1", f"{first}-2")


def test_every_column_is_part_of_the_default_id(rows_of):
    variants = [row(), row(image="b.png"), row(prompt="x"), row(prompt=["a cat"]), row(seed=0)]
    variants += [row(label="x"), row(label="y"), row(negative_prompt="x"), row(source_prompt="x")]
    assert len(set(ids(rows_of(variants)))) == len(variants)


def test_embedded_bytes_are_part_of_the_default_id(tmp_path):
    images = [{"bytes": data, "path": "same.png"} for data in (b"a", b"b", b"a")]
    pq.write_table(pa.table({"image": images, "prompt": ["x"] * 3}), tmp_path / "m.parquet")
    first, second, third = ids(expanded(tmp_path / "m.parquet").to_pylist())
    assert first != second
    assert third == f"{first}-1"


def test_an_entry_of_a_list_is_numbered_also_when_it_is_the_only_one(rows_of):
    made = rows_of(
        [row(row_id="a", prompt=["x", "y"]), row(row_id="b", prompt=["z"]), row(row_id="c")]
    )
    assert ids(made) == ["a-0", "a-1", "b-0", "c"]
    assert [m["prompt"] for m in made] == ["x", "y", "z", "a cat"]


def test_a_prompt_that_is_no_text_is_a_problem_of_its_row_alone(rows_of):
    made = rows_of(
        [
            row(row_id="null", prompt=None),
            row(row_id="blank", prompt="  "),
            row(row_id="list", prompt=["x", None, ""]),
            row(row_id="none", prompt=[]),
        ]
    )
    assert ids(made) == ["null", "blank", "list-0", "list-1", "list-2", "none"]
    problems = [m["problem"] for m in made]
    assert problems[2] is None
    assert all("prompt is null or empty" in p for p in problems[:2] + problems[3:])


def test_a_null_among_lists_of_prompts_has_an_id_of_its_own_row(tmp_path):
    found = []
    for name, order in (("one", [0, 1, 2]), ("two", [2, 0, 1])):
        table = pa.table({"image": ["a", "a", "a"], "prompt": [["x"], None, ["y"]]})
        pq.write_table(table.take(order), tmp_path / f"{name}.parquet")
        made = expanded(tmp_path / f"{name}.parquet").to_pylist()
        (null,) = [m for m in made if m["prompt"] is None]
        assert "prompt is null or empty" in null["problem"]
        found.append(sorted(ids(made)))
    assert found[0] == found[1]


def test_seeds_follow_from_the_job_and_the_id_and_not_from_the_order(rows_of):
    rows = [row(row_id=name) for name in "abc"]
    seeds = {m["row_id"]: m["seed"] for m in rows_of(rows)}
    assert seeds == {m["row_id"]: m["seed"] for m in rows_of(rows[::-1])}
    assert seeds == {name: derived_seed(0, name) for name in "abc"}
    assert len(set(seeds.values())) == 3
    assert not set(seeds.values()) & {m["seed"] for m in rows_of(rows, seed=1)}
    assert all(0 <= seed < 2**63 for seed in seeds.values())


def test_entries_of_a_list_share_the_seed_of_their_row(rows_of):
    first, second = rows_of([row(row_id="a", prompt=["x", "y"])])
    assert first["seed"] == second["seed"] == derived_seed(0, "a")


def test_a_row_may_override_the_job_and_a_null_does_not(rows_of):
    own = {
        "negative_prompt": "blurry",
        "seed": 5,
        "method": "sdedit",
        "guidance_scale": 3.0,
        "pnp_f_t": 0.0,
        "pnp_attn_t": 1.0,
        "strength": 0.5,
    }
    job = {"negative_prompt": "ugly", "guidance_scale": 9.0, "pnp_f_t": 0.3, "strength": 0.2}
    first, second = rows_of([row(**own), row(**dict.fromkeys(own))], **job)
    assert {name: first[name] for name in own} == own
    assert {name: second[name] for name in job} == job
    assert (second["method"], second["pnp_attn_t"]) == ("pnp", 0.5)
    assert second["seed"] == derived_seed(0, second["row_id"])
    assert first["problem"] is second["problem"] is None


def test_an_empty_negative_prompt_overrides_the_job(rows_of):
    (made,) = rows_of([row(negative_prompt="")], negative_prompt="ugly")
    assert made["negative_prompt"] == ""


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("pnp_f_t", 1.5, "1.5"),
        ("pnp_attn_t", -0.1, "-0.1"),
        ("strength", 2.0, "2"),
        ("strength", float("nan"), "nan"),
        ("guidance_scale", -1.0, "-1"),
        ("guidance_scale", 1001.0, "1001"),
        ("guidance_scale", float("nan"), "nan"),
        ("guidance_scale", float("inf"), "inf"),
        ("method", "pmp", "'pmp'"),
    ],
)
def test_an_override_out_of_range_is_a_problem_that_names_column_and_value(
    rows_of, name, value, shown
):
    good, bad = rows_of([row(), row(**{name: value})])
    assert good["problem"] is None
    assert name in bad["problem"]
    assert shown in bad["problem"]


def test_an_unknown_method_is_answered_with_the_nearest_one(rows_of):
    assert "did you mean 'sdedit'?" in rows_of([row(method="sdedt")])[0]["problem"]


def test_a_row_without_an_image_needs_a_source_prompt(rows_of):
    without, generated, empty = rows_of(
        [row(image=None), row(image=None, source_prompt="a dog"), row(image="", source_prompt="")]
    )
    assert "image is null" in without["problem"]
    assert generated["problem"] is None
    assert "image is null" in empty["problem"]


def test_rows_of_one_image_and_source_prompt_share_their_guidance(rows_of):
    made = rows_of(
        [
            row(prompt="x"),
            row(prompt="y", seed=4, method="sdedit", source_prompt=""),
            row(source_prompt="a photo"),
            row(image="b.png"),
            row(image=None, source_prompt="a photo", seed=1),
            row(image=None, source_prompt="a photo", seed=1, prompt="y"),
            row(image=None, source_prompt="a photo", seed=2),
        ]
    )
    one, same, prompted, other, *generated = [m["guidance"] for m in made]
    assert one == same
    assert generated[0] == generated[1]
    assert len({one, prompted, other, *generated}) == 5


def test_embedded_images_are_told_apart_by_their_bytes(tmp_path):
    images = [{"bytes": b"a", "path": "1"}, {"bytes": b"a", "path": "2"}, {"bytes": b"b"}]
    table = pa.table({"image": images, "prompt": ["x"] * 3})
    pq.write_table(table, tmp_path / "m.parquet")
    made = expanded(tmp_path / "m.parquet").to_pylist()
    assert made[0]["guidance"] == made[1]["guidance"] != made[2]["guidance"]
    assert [m["image_bytes"] for m in made] == [b"a", b"a", b"b"]


def test_extra_columns_follow_their_rows_with_their_types(tmp_path):
    extra = {
        "when": pa.array([datetime.datetime(2026, 1, 2), None], pa.timestamp("ms")),
        "tags": pa.array([["a"], None], pa.large_list(pa.string())),
        "box": pa.array([{"x": 1}, None]),
        "guidance": pa.array([1, 2]),  # named like a column of ours
        "word": pa.array(["u", None]).dictionary_encode().cast(pa.string()),
    }
    table = pa.table({"image": ["a", "b"], "prompt": [["x", "y"], ["z"]], **extra})
    pq.write_table(table, tmp_path / "m.parquet")
    made = expanded(tmp_path / "m.parquet")
    assert made.schema.names == [*SCHEMA.names, *(EXTRA + name for name in extra)]
    for name, values in extra.items():
        carried = made[EXTRA + name]
        assert carried.type == values.type
        assert carried.combine_chunks().equals(values.take(pa.array([0, 0, 1])))


def test_a_manifest_of_many_batches_is_expanded_in_its_order(tmp_path):
    count = 40_000
    said = [f"x{n % 19_000}" for n in range(count)]  # said twice or thrice, in different batches
    pq.write_table(pa.table({"image": ["a"] * count, "prompt": said}), tmp_path / "m.parquet")
    made = expanded(tmp_path / "m.parquet")
    names = made["row_id"].to_pylist()
    assert made["prompt"].to_pylist() == said
    assert names[19_000:38_000] == [f"{name}-1" for name in names[:19_000]]
    assert names[38_000:] == [f"{name}-2" for name in names[:2_000]]
    assert len(set(names)) == count
