"""The latent cache: the same bits back or nothing, and nothing damaged is ever trusted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from pnp_batch.latents import Inversion, LatentCache, Overlapped
from pnp_batch.storage import Storage, StorageUnavailable

KEY = "ab" * 32
INVERSION = Inversion(
    "m", steps=10, inversion_steps=20, deep_every=1, resolution=512, dtype="float32"
)


@pytest.fixture
def cache(tmp_path):
    return LatentCache(Storage(str(tmp_path / "cache")))


def trajectory(dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((3, 4, 2, 2)).astype(dtype)


def overwrite(cache, data):
    """Puts bytes where an entry belongs, without the care (and the fsync) of a real write."""
    path = Path(cache.storage.path(cache.name(KEY)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_trajectory_comes_back_bit_by_bit(cache, dtype):
    values = trajectory(dtype)
    values[0, 0, 0] = [np.nan, -0.0]
    assert cache.get(KEY) is None
    assert not cache.storage.exists(cache.name(KEY))
    cache.put(KEY, values)
    assert cache.storage.exists(cache.name(KEY))
    found = cache.get(KEY)
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    assert found.tobytes() == values.tobytes()


def test_a_view_is_stored_as_what_it_shows(cache):
    view = trajectory().transpose(0, 1, 3, 2)[::2]
    cache.put(KEY, view)
    np.testing.assert_array_equal(cache.get(KEY), view)


def test_the_same_entry_has_the_same_bytes(cache):
    cache.put(KEY, trajectory())
    first = cache.storage.read(cache.name(KEY))
    cache.put(KEY, trajectory())
    assert cache.storage.read(cache.name(KEY)) == first
    assert cache.storage.files() == [cache.name(KEY)]


def test_an_entry_with_a_flipped_bit_is_a_miss_or_unharmed(cache):
    values = trajectory()
    cache.put(KEY, values)
    data = cache.storage.read(cache.name(KEY))
    misses = 0
    places = range(0, len(data), 3)
    for place in places:
        broken = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        overwrite(cache, broken)
        found = cache.get(KEY)
        misses += found is None
        assert found is None or found.tobytes() == values.tobytes()
    assert misses > 0.95 * len(places)


def test_a_truncated_or_extended_entry_is_a_miss(cache):
    cache.put(KEY, trajectory())
    data = cache.storage.read(cache.name(KEY))
    for length in range(0, len(data), 9):
        overwrite(cache, data[:length])
        assert cache.get(KEY) is None
    overwrite(cache, data + b"\0")
    assert cache.get(KEY) is None


def test_a_damaged_entry_is_replaced(cache):
    overwrite(cache, b"not safetensors at all")
    assert cache.get(KEY) is None
    assert cache.damaged == 1
    cache.put(KEY, trajectory())
    np.testing.assert_array_equal(cache.get(KEY), trajectory())


def test_an_entry_of_another_key_is_a_miss(cache):
    other = "cd" * 32
    cache.put(other, trajectory())
    overwrite(cache, cache.storage.read(cache.name(other)))
    assert cache.get(other) is not None
    assert cache.get(KEY) is None


FOREIGN = {
    "another tensor": safetensors.numpy.save({"weight": trajectory()}),
    "no metadata": safetensors.numpy.save({"trajectory": trajectory()}),
    "other metadata": safetensors.numpy.save({"trajectory": trajectory()}, {"format": "pt"}),
    "no tensor": safetensors.numpy.save({}),
    "bfloat16": b'{"trajectory":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}',
    "float8": b'{"trajectory":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}',
    "empty": b"",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_a_miss(cache, kind):
    data = FOREIGN[kind]
    if data.startswith(b"{"):
        data = len(data).to_bytes(8, "little") + data + b"\0\0"
    overwrite(cache, data)
    assert cache.get(KEY) is None


def test_a_swapped_trajectory_is_a_miss(cache):
    """The metadata of an entry does not fit the numbers of another one."""
    cache.put(KEY, trajectory())
    data = cache.storage.read(cache.name(KEY))
    size = trajectory().nbytes
    overwrite(cache, data[:-size] + trajectory(seed=1).tobytes())
    assert cache.get(KEY) is None


def test_everything_that_shapes_an_inversion_is_part_of_its_key():
    others = (
        replace(INVERSION, model="n"),
        replace(INVERSION, steps=20),
        replace(INVERSION, inversion_steps=40),
        replace(INVERSION, resolution=256),
        replace(INVERSION, dtype="bfloat16"),
    )
    keys = {inversion.key(b"p", "") for inversion in (INVERSION, *others)}
    keys |= {INVERSION.key(b"q", ""), INVERSION.key(b"p", "a photo \ud800")}
    assert len(keys) == 8
    assert INVERSION.key(b"p", "") in keys
    assert all(len(key) == 64 for key in keys)


def test_the_cache_lies_in_object_stores_too(s3):
    cache = LatentCache(Storage(s3("latents")))
    assert cache.get(KEY) is None
    cache.put(KEY, trajectory())
    np.testing.assert_array_equal(cache.get(KEY), trajectory())
    cache.storage.write(cache.name(KEY), cache.storage.read(cache.name(KEY))[:-1])
    assert cache.get(KEY) is None


def test_what_is_written_behind_is_there_once_it_is_settled(cache):
    behind = Overlapped(cache)
    entries = {f"{n:02x}" * 32: trajectory(seed=n) for n in range(20)}
    for key, values in entries.items():
        behind.put(key, values)
    behind.settle()
    behind.expect(entries)
    for key, values in entries.items():
        assert np.array_equal(cache.get(key), values)
        assert np.array_equal(behind.get(key), values)  # read ahead
        assert np.array_equal(behind.get(key), values)  # and again, read now
    assert behind.get("ff" * 32) is None


def test_a_write_that_fails_is_told_when_it_is_settled(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    behind = Overlapped(LatentCache(Storage(str(tmp_path / "cache"), patience=0.0)))
    behind.put(KEY, trajectory())
    with pytest.raises(StorageUnavailable):
        behind.settle()
    behind.settle()  # it was told
