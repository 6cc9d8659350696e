"""The latent cache: one inversion's trajectory a file, found by everything that shaped it.

In: a key and a trajectory. Out: the same trajectory, or None. An entry carries a digest of its
own bytes; one that is torn, rotten or foreign is a miss and gets replaced, never trusted.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pnp_batch.steps import Sampling
from pnp_batch.storage import Storage

FORMAT = "pnp-batch-latents-1"
TENSOR = "trajectory"
AT_ONCE = 8  # reads and writes of one process
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inversion:
    """What shapes every inversion of a job.

    Attributes:
        model: digest of the model, which covers its schedule.
        steps: sampling steps, whose timesteps are kept.
        inversion_steps, deep_every: of the inversion.
        resolution: side of the working image.
        dtype: what the UNet computes in, such as `float32`.
    """

    model: str
    steps: int
    inversion_steps: int
    deep_every: int
    resolution: int
    dtype: str

    @classmethod
    def of(cls, sampling: Sampling, model: str, resolution: int, dtype: str) -> Inversion:
        """The inversion of a job."""
        steps, inversion, deep = sampling.steps, sampling.inversion, sampling.deep_every
        return cls(model, steps, inversion, deep, resolution, dtype)

    def key(self, pixels: bytes, prompt: str) -> str:
        """The name of one inversion: a hash of everything that shapes it.

        Args:
            pixels: RGB bytes of the prepared image.
            prompt: what the image is inverted with.
        """
        image = hashlib.sha256(pixels).hexdigest()
        parts = [FORMAT, image, prompt, *astuple(self)]
        return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()


class LatentCache:
    """A folder of trajectories that any number of jobs may share at the same time.

    Attributes:
        damaged: entries met so far that could not be trusted.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.damaged = 0

    @staticmethod
    def name(key: str) -> str:
        """The file of an entry, relative to the cache."""
        return f"{key[:2]}/{key}.safetensors"

    def get(self, key: str) -> np.ndarray | None:
        """The trajectory (steps, C, h, w) of a key, or None when there is none to be trusted."""
        data = self.storage.read_if_there(self.name(key))
        if data is None:
            return None
        try:
            trajectory = load(data)[TENSOR]
            meta = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            sound = meta == _metadata(key, trajectory)
        except (SafetensorError, KeyError, ValueError, TypeError):
            sound = False
        if not sound:
            self.damaged += 1
            logger.warning("latent cache entry %s is damaged or foreign: inverting again", key)
            return None
        return trajectory

    def put(self, key: str, trajectory: np.ndarray) -> None:
        """Writes an entry whole, replacing whatever was there; equal keys have equal content."""
        entry = np.ascontiguousarray(trajectory)
        self.storage.write(self.name(key), save({TENSOR: entry}, _metadata(key, entry)))


class Overlapped:
    """A latent cache that is read ahead and written behind: the device does not wait for it.

    What `put` was given is on storage once `settle` has returned, and not before.
    """

    def __init__(self, cache: LatentCache) -> None:
        self._cache = cache
        self._threads = ThreadPoolExecutor(AT_ONCE)
        self._coming: dict[str, Future[np.ndarray | None]] = {}
        self._going: list[Future[None]] = []

    def expect(self, keys: Iterable[str]) -> None:
        """Begins to read entries that `get` will be asked for."""
        for key in keys:
            if key not in self._coming:
                self._coming[key] = self._threads.submit(self._cache.get, key)

    def get(self, key: str) -> np.ndarray | None:
        """As `LatentCache.get`."""
        coming = self._coming.pop(key, None)
        return self._cache.get(key) if coming is None else coming.result()

    def put(self, key: str, trajectory: np.ndarray) -> None:
        """Begins to write an entry, of which nobody may change the array any more."""
        self._going.append(self._threads.submit(self._cache.put, key, trajectory))

    def settle(self) -> None:
        """Waits for what is being written, and raises what a write raised."""
        going, self._going = self._going, []
        for coming in self._coming.values():
            coming.cancel()
        self._coming = {}
        for written in going:
            written.result()


def _metadata(key: str, trajectory: np.ndarray) -> dict[str, str]:
    """What an entry says of itself, as one value: safetensors writes several in any order."""
    digest = hashlib.sha256(f"{FORMAT}{key}{trajectory.dtype}{trajectory.shape}".encode())
    digest.update(np.ascontiguousarray(trajectory).data)
    return {FORMAT: f"{key} sha256:{digest.hexdigest()}"}
