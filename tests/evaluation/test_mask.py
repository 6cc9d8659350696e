"""Masks in every form that a manifest may have."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pnp_batch.evaluation import NotScored, mask_of
from pnp_batch.source import SourcePolicy

LEFT = np.zeros((32, 32), bool)
LEFT[:, :16] = True


def png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).convert("L").save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def policy(tmp_path) -> SourcePolicy:
    (tmp_path / "mask.png").write_bytes(png(LEFT))
    return SourcePolicy(str(tmp_path))


def test_pictures_by_path_and_as_bytes(policy):
    forms = ["mask.png", {"bytes": png(LEFT), "path": None}, {"bytes": None, "path": "mask.png"}]
    for form in forms:
        assert (mask_of(form, policy, 32, "crop") == LEFT).all()


def test_a_mask_is_cut_as_the_picture_is(policy):
    wide = np.zeros((32, 64), bool)
    wide[:, :32] = True  # its middle square is half of it
    assert (mask_of({"bytes": png(wide)}, policy, 32, "crop") == LEFT).all()
    assert (mask_of({"bytes": png(wide)}, policy, 16, "stretch") == LEFT[::2, ::2]).all()


def test_the_runs_of_pie_bench(policy):
    """Start and length over 512 x 512, as PIE-Bench's own decoder reads them, rim included."""
    runs = [512 * 100 + 50, 60, 512 * 101 + 50, 60, 512 * 512 - 3, 9]
    flat = np.zeros(512 * 512)
    for k in range(0, len(runs), 2):
        for j in range(min(runs[k + 1], len(flat) - runs[k])):
            flat[runs[k] + j] = 1
    expected = flat.reshape(512, 512)
    expected[0, :] = expected[-1, :] = expected[:, 0] = expected[:, -1] = 1
    found = mask_of(runs, policy, 512, "crop")
    assert (found == expected.astype(bool)).all()
    assert found[100, 50:110].all()
    assert not found[100, 110]


@pytest.mark.parametrize(
    "given",
    ["nowhere.png", "../../etc/hostname", {"bytes": b"x"}, {}, [1, 2, 3],
     [-1, 5], [1, "a"], 7, [2**80, 1]],
)  # fmt: skip
def test_what_is_no_mask_says_so(policy, given):
    found = mask_of(given, policy, 32, "crop")
    assert isinstance(found, NotScored)
    assert found.reason.startswith("column `mask`: ")


def test_no_mask_is_no_error(policy):
    assert mask_of(None, policy, 32, "crop") == NotScored("the row has no mask")
