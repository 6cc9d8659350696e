"""The training pictures: drawn once from fixed seeds, kept with captions; a held-out part apart."""

from __future__ import annotations

import json
import multiprocessing
import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pnp_batch.world import (
    COLOURS,
    OBJECTS,
    RENDITIONS,
    SCENES,
    Spec,
    caption,
    draw,
    random_spec,
)
from pnp_batch.world.captions import loose_caption

CHUNK = 1024
HELD_OUT = -1
LOOSE_SHARE = 0.15


@dataclass(frozen=True)
class Pictures:
    """Pictures as uint8, shape (n, 64, 64, 3), and one caption for each."""

    images: NDArray[np.uint8]
    captions: list[str]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.captions)

    def batch(self, index: Tensor, device: torch.device) -> Tensor:
        """The pictures at ``index`` as floats from -1 to 1, shape (n, 3, 64, 64)."""
        return to_tensor(self.images[index.numpy()], device)


def to_tensor(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 pictures (n, h, w, 3) as floats from -1 to 1, shape (n, 3, h, w)."""
    tensor = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.contiguous(memory_format=torch.channels_last)


def specs(chunk: int, count: int = CHUNK) -> list[Spec]:
    """The specs of one chunk of the training pictures, or of the held-out ones for `HELD_OUT`."""
    rng = random.Random("held-out" if chunk == HELD_OUT else f"train/{chunk}")
    return [random_spec(rng) for _ in range(count)]


def draw_chunk(directory: Path, chunk: int, count: int = CHUNK) -> None:
    """Draws one chunk into ``directory`` unless it is there already."""
    target = chunk_path(directory, chunk)
    if target.exists():
        return
    drawings = [draw(spec) for spec in specs(chunk, count)]
    rng = random.Random(f"loose/{chunk}")
    words = [
        loose_caption(d.spec, rng)
        if rng.random() < LOOSE_SHARE and chunk != HELD_OUT
        else d.caption
        for d in drawings
    ]
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        images = np.stack([np.asarray(d.image) for d in drawings])
        np.savez(file, images=images, captions=np.array(json.dumps(words)))
    partial.rename(target)


def chunk_path(directory: Path, chunk: int) -> Path:
    """Where a chunk is kept."""
    return directory / ("held-out.npz" if chunk == HELD_OUT else f"train-{chunk:03d}.npz")


def draw_all(directory: Path, chunks: int, processes: int = 2, count: int = CHUNK) -> None:
    """Draws what is missing of ``chunks`` training chunks and the held-out pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = [c for c in range(HELD_OUT, chunks) if not chunk_path(directory, c).exists()]
    jobs = [(directory, chunk, count) for chunk in wanted]
    if processes == 1:
        for job in jobs:
            draw_chunk(*job)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(draw_chunk, jobs, chunksize=1)


def stored_chunks(directory: Path, held_out: bool = False) -> list[Path]:
    """The files that hold the training pictures, or the held-out ones."""
    paths = [chunk_path(directory, HELD_OUT)] if held_out else sorted(directory.glob("train-*.npz"))
    if not paths or not paths[0].exists():
        raise FileNotFoundError(f"{directory}: no drawn pictures; run the stage 'data' first")
    return paths


def load_captions(directory: Path, held_out: bool = False) -> list[str]:
    """The captions alone, in the order of `load`."""
    captions: list[str] = []
    for path in stored_chunks(directory, held_out):
        with np.load(path) as stored:
            captions += json.loads(str(stored["captions"]))
    return captions


def load(directory: Path, held_out: bool = False) -> Pictures:
    """All training pictures in ``directory``, or the held-out ones."""
    images = []
    for path in stored_chunks(directory, held_out):
        with np.load(path) as stored:
            images.append(stored["images"])
    return Pictures(np.concatenate(images), load_captions(directory, held_out))


def every_caption() -> list[str]:
    """Every full caption that the world can say, sorted; the vocabulary is learnt from them."""
    said = {
        caption(Spec(o, c, s, r, 0.3, 0.5, 0.5, False, 0))
        for o, c, s, r in product(OBJECTS, COLOURS, SCENES, RENDITIONS)
    }
    return sorted(said)
