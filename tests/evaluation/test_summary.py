"""The summary: means, bootstrap intervals, groups."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pnp_batch import results
from pnp_batch.errors import InvalidConfig
from pnp_batch.storage import Storage
from pnp_batch.summary import estimate, tables

N = 60


@pytest.fixture
def output(tmp_path) -> Storage:
    """Sixty ok rows of two methods and kinds, and a failed one."""
    values = np.random.default_rng(3).normal(0.5, 0.2, N)
    rows = [
        {
            "row_id": f"{k:02d}",
            "status": "ok",
            "method": ("pnp", "sdedit")[k % 2],
            "prompt": f"prompt {k}",
            "kind": ("scene", "colour", None)[k % 3],
            "ssim": values[k],
            "psnr": None if k % 2 else 20.0 + k,
            "mask": [1, 2],
        }
        for k in range(N)
    ]
    rows.append({"row_id": "bad", "status": "error", "method": "pnp", "error_type": "ModelError"})
    fields = [("kind", pa.string()), ("ssim", pa.float64()), ("psnr", pa.float64())]
    schema = results.schema(pa.schema([*fields, ("mask", pa.list_(pa.int64()))]))
    storage = Storage(str(tmp_path))
    for part in (rows[:40], rows[40:]):
        results.write(storage, pa.Table.from_pylist(part, schema))
    return storage


def test_groups_have_the_means_of_their_rows(output):
    by_method, by_kind = tables(output)
    rows = results.read(output).to_pylist()
    assert (by_method.by, by_kind.by) == ("method", "kind")
    assert [(line.group, line.rows) for line in by_method.lines] == [("pnp", 30), ("sdedit", 30)]
    assert [line.group for line in by_kind.lines] == ["", "colour", "scene"]
    for line in by_method.lines:
        own = [r["ssim"] for r in rows if r["method"] == line.group and r["status"] == "ok"]
        assert line.scores["ssim"].mean == pytest.approx(np.mean(own))
    assert by_method.lines[0].scores["psnr"].mean == pytest.approx(20 + 29)
    assert "psnr" not in by_method.lines[1].scores  # none of its rows has one


def test_intervals_are_those_of_a_bootstrap(output):
    values = np.random.default_rng(4).exponential(1.0, 50)
    rng = np.random.default_rng(99)
    means = rng.choice(values, (20_000, len(values))).mean(1)
    found = estimate(values)
    assert found.mean == pytest.approx(values.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), rel=0.03)
    assert estimate(values) == found
    assert estimate(np.array([2.0])) == type(found)(2.0, 2.0, 2.0)


def test_intervals_of_very_many_values_go_on_where_the_bootstrap_ends():
    values = np.random.default_rng(5).exponential(1.0, 2001)
    many, fewer = estimate(values), estimate(values[:2000])
    assert [many.low, many.high] == pytest.approx([fewer.low, fewer.high], abs=4e-3)


def test_rows_are_told_apart_by_any_plain_column(output):
    assert [table.by for table in tables(output, "prompt")] == ["method", "prompt"]
    assert [table.by for table in tables(output, "method")] == ["method"]
    with pytest.raises(InvalidConfig, match="no such column"):
        list(tables(output, "kin"))
    with pytest.raises(InvalidConfig, match="cannot be told apart"):
        list(tables(output, "mask"))


def test_an_empty_output_has_no_tables(tmp_path):
    assert list(tables(Storage(str(tmp_path)))) == []
