"""Squares of every fit, and the files that they become."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pnp_batch import config
from pnp_batch.errors import InvalidConfig
from pnp_batch.source import SourcePolicy, decode, encode, prepare
from tests.pictures import picture, pixels, swapped_profile

POLICY = SourcePolicy(base=".")

# Peak memory in KiB, of this process alone: what getrusage says begins with the parent's.
PEAK = """
import re, resource, sys
from pathlib import Path

def peak():
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
    unit = 1024 if sys.platform == "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
"""


@pytest.mark.parametrize("fit", config.FITS)
@pytest.mark.parametrize("size", [(64, 64), (64, 48), (31, 97), (500, 20), (1, 1), (128, 64)])
def test_every_fit_gives_a_square(fit, size):
    square = prepare(picture(*size), 64, fit)
    assert (square.mode, square.size) == ("RGB", (64, 64))
    if size == (64, 64):
        assert np.array_equal(pixels(square), pixels(picture(64, 64)))


def test_crop_takes_the_middle_and_stretch_takes_all():
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("lime", (100, 0, 200, 100))
    cropped = pixels(prepare(wide, 50, "crop"))
    assert (cropped[:, 3:-3] == (0, 255, 0)).all()
    assert cropped[..., 1].min() > 200
    stretched = pixels(prepare(wide, 60, "stretch"))
    assert stretched[30, 5].tolist() == stretched[30, 55].tolist() == [255, 0, 0]
    assert stretched[30, 30].tolist() == [0, 255, 0]


def test_crop_and_pad_do_not_resample_what_already_fits():
    wide = picture(80, 64)
    assert np.array_equal(pixels(prepare(wide, 64, "crop")), pixels(wide)[:, 8:72])
    padded = pixels(prepare(wide, 80, "pad"))
    assert np.array_equal(padded[8:72], pixels(wide))
    assert (np.delete(padded, np.s_[8:72], 0) == 255).all()


EXTREME = f"""{PEAK}
from PIL import Image
from pnp_batch.source import prepare
before = peak()
for fit in ("crop", "stretch", "pad"):
    assert prepare(Image.new("RGB", (8_000_000, 1)), 256, fit).size == (256, 256)
    assert prepare(Image.new("RGB", (1, 2_000_000)), 256, fit).size == (256, 256)
print(peak() - before)
"""


def test_extreme_shapes_cost_no_memory():
    command = [sys.executable, "-W", "error", "-c", EXTREME]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200_000


@pytest.mark.parametrize("image_format", config.IMAGE_FORMATS)
def test_encoded_bytes_are_the_same_each_time_and_carry_nothing_else(image_format):
    image = picture()
    plain = encode(image, image_format)
    image.info = {"icc_profile": swapped_profile(), "comment": b"x", "dpi": (1, 1)}
    assert encode(picture(), image_format) == plain
    assert len(encode(image, image_format)) < len(plain) + 200
    result = decode(plain, POLICY)
    bound = 12 if image_format == "jpg" else 0
    assert np.abs(pixels(result) - pixels(picture())).max() <= bound


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InvalidConfig) as refused:
        prepare(picture(), 64, "crp")
    assert "'crop'" in refused.value.hint
    with pytest.raises(InvalidConfig) as refused:
        encode(picture(), "jpeg")
    assert "'jpg'" in refused.value.hint
