"""Sweeps: which rows there are, what sets them apart, what they share, and what is refused."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnp_batch import manifest, methods
from pnp_batch.building.sweep import LONGEST, combinations
from pnp_batch.config import RunConfig
from pnp_batch.errors import InvalidConfig
from pnp_batch.rows import expand
from pnp_batch.sink import image_name
from tests import pictures


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def outputs(path):
    """The rows that a run makes of a manifest, by id; all of them good."""
    config = RunConfig(manifest=str(path), output="-")
    tables = expand(manifest.read(str(path)), config, methods.KNOWN)
    rows = {row["row_id"]: row for table in tables for row in table.to_pylist()}
    assert not [row["problem"] for row in rows.values() if row["problem"]]
    return rows


def _without(row, names):
    """A row but for some of its parameters, wherever it tells them."""
    shared = {k: v for k, v in json.loads(row["shared"]).items() if k not in names}
    return {**{k: v for k, v in row.items() if k not in names}, "shared": shared}


@pytest.fixture
def cats(draw, tmp_path):
    draw("", "cat.png", "dog.png")
    return write(
        tmp_path / "cats.jsonl",
        {"row_id": "cat", "image": "cat.png", "prompt": ["a", "b"], "shop": 1, "pnp_f_t": 0.3},
        {"row_id": "dog", "image": "dog.png", "prompt": "c", "shop": 2, "seed": 7},
    )


@pytest.mark.parametrize("output", ["sweep.parquet", "sweep.csv", "sweep.jsonl"])
def test_every_row_once_for_each_combination_and_nothing_else_differs(shell, cats, output):
    asked = ("--set", "pnp_f_t=0.4,0.8", "--set", "pnp-attn-t=0.2,0.50")
    rows = shell.build("sweep", cats, *asked, output=output)
    ids = [
        f"{row}__pnp_f_t={f}__pnp_attn_t={a}"
        for row in ("cat-0", "cat-1", "dog")
        for f in ("0.4", "0.8")
        for a in ("0.2", "0.5")
    ]
    assert [row["row_id"] for row in rows] == ids
    assert (shell.answer["rows"], shell.answer["images"], shell.answer["outputs"]) == (12, 2, 12)
    before, after = outputs(cats), outputs(shell.folder / output)
    swept = {"row_id", "row_hash", "pnp_f_t", "pnp_attn_t"}
    for row_id, row in after.items():
        whole = before[row_id.partition("__")[0]]
        assert _without(row, swept) == _without(whole, swept)
        assert row_id.endswith(f"__pnp_f_t={row['pnp_f_t']:g}__pnp_attn_t={row['pnp_attn_t']:g}")
        assert image_name(row_id, "png").endswith(f"/{row_id}.png")


def test_what_has_no_column_goes_into_parameters_beside_what_is_there(shell, draw, tmp_path):
    draw("", "a.png")
    row = {"row_id": "a", "image": "a.png", "prompt": "x", "method": "pnp-mask"}
    own = {"mask_threshold": 0.3, "mask_mode": "background"}
    whole = write(tmp_path / "w.jsonl", {**row, "parameters": own})
    rows = shell.build("sweep", whole, "--set", "mask_mode=both,foreground", "--set", "seed=1,2")
    assert [(json.loads(r["parameters"]), r["seed"]) for r in rows] == [
        ({**own, "mask_mode": mode}, seed) for mode in ("both", "foreground") for seed in (1, 2)
    ]
    assert rows[0]["row_id"] == "a__mask_mode=both__seed=1"
    outputs(tmp_path / "m.parquet")


def test_methods_and_texts_with_commas_can_be_swept(shell, cats):
    rows = shell.build(
        *("sweep", cats, "--set", "method=pnp,sdedit"),
        *("--set", "pnp_f_layers=4;4,7-9", "--set", "negative_prompt=a dog, blurry;dark"),
    )
    assert len({row["row_id"].casefold() for row in rows}) == 3 * 2 * 2 * 2
    assert {row["method"] for row in rows} == {"pnp", "sdedit"}
    assert {row["negative_prompt"] for row in rows} == {"a dog, blurry", "dark"}
    layers = {json.loads(row["parameters"])["pnp_f_layers"] for row in rows}
    assert layers == {"4", "4,7-9"}
    for row in rows:
        assert image_name(row["row_id"], "png").endswith(f"/{row['row_id']}.png")


def test_long_ids_stay_file_names_and_apart(shell, draw, tmp_path):
    draw("", "a.png")
    row_id = "a" * (LONGEST - 5)
    whole = write(tmp_path / "w.jsonl", {"row_id": row_id, "image": "a.png", "prompt": "x"})
    rows = shell.build("sweep", whole, "--set", "pnp_f_t=0.25,0.5")
    assert len({row["row_id"] for row in rows}) == 2
    assert {len(row["row_id"]) for row in rows} == {LONGEST}


def test_embedded_images_stay_embedded(shell, tmp_path):
    images = [{"bytes": pictures.saved(pictures.picture(8, n + 8)), "path": "a"} for n in range(3)]
    pq.write_table(pa.table({"image": images, "prompt": ["x"] * 3}), tmp_path / "w.parquet")
    shell.run("manifest", "sweep", tmp_path / "w.parquet", "--set", "pnp_f_t=0.2,0.4",
              "--output", tmp_path / "m.parquet")  # fmt: skip
    rows = shell.read(tmp_path / "m.parquet", [])
    assert [row["image"]["bytes"] for row in rows] == [
        image["bytes"] for image in images for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("pnp_f_t=0.4,1.5", r"pnp_f_t: 1\.5 is outside 0\.\.1"),
        ("pnp_f_t=0.4,much", "pnp_f_t: 'much' is no float"),
        ("pnp_f_t=0.4,0.40", r"pnp_f_t: 0\.4 is there twice"),
        ("pnp_f_t=", "is no NAME=V1,V2"),
        ("pnp_f_t", "is no NAME=V1,V2"),
        ("pnp_g_t=0.4", "pnp_g_t: no such parameter"),
        ("steps=20,50", "steps: it is of the whole job"),
        ("clip=demo", "clip: it is of the whole job"),
        ("method=pnp,pmp", "method: 'pmp' is unknown"),
        ("inversion=ddim,other", "inversion: unknown value 'other'"),
        ("pnp_f_layers=4;99", "pnp_f_layers"),
        ("local_blend=maybe", "local_blend: 'maybe' is no bool"),
    ],
)
def test_what_is_no_parameter_or_no_value_of_it_is_refused(given, told):
    with pytest.raises(InvalidConfig, match=told) as refused:
        combinations([given], methods.KNOWN)
    assert "--set" in str(refused.value)
    assert refused.value.hint


def test_a_refusal_is_two_lines_and_leaves_nothing(shell, cats):
    said = shell.refused("sweep", cats, "--set", "pnp_f_t=0.4", "--set", "pnp_f_t=0.5")
    assert "--set pnp_f_t: given twice" in said
