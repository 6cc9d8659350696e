"""The engine on one device: images a second, FLOPs of an image, and FLOP/s against the device's."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pnp_batch.bench import work
from pnp_batch.config import RunConfig, with_values
from pnp_batch.plan import Plan, plan

if TYPE_CHECKING:
    import torch

    from pnp_batch.translator import Translator

# Of the square matrices whose product is the device's own pace.
SIDES = {"cpu": 1024, "mps": 4096, "cuda": 8192}
PRODUCTS = 10


@dataclass(frozen=True)
class EngineBench:
    """What the engine does on a device, one batch at a time; rates are medians.

    Attributes:
        images, prompts: of a batch; `prompts` are those of each image.
        inversions_per_second: guidance images, encoded and inverted.
        generations_per_second: translated images, from inversions that are there.
        images_per_second: translated images, inversions included.
        tflop_per_image: counted, of a translated image with its share of the inversion.
        published_tflop_per_image: what the published diffusers code spends at its defaults.
        tflops: achieved TFLOP/s over inversion and generation.
        ceiling_tflops: the TFLOP/s of large matrix products in the same dtype and threads.
        latent_bytes_per_image: of a guidance image in the latent cache.
    """

    model: str
    device: str
    dtype: str
    threads: int
    steps: int
    images: int
    prompts: int
    repeats: int
    inversions_per_second: float
    generations_per_second: float
    images_per_second: float
    tflop_per_image: float
    published_tflop_per_image: float
    tflops: float
    ceiling_tflops: float
    latent_bytes_per_image: int

    @property
    def utilisation(self) -> float:
        """The share of the device's own pace that was reached."""
        return self.tflops / self.ceiling_tflops


def bench_engine(config: RunConfig, *, prompts: int, repeats: int, threads: int) -> EngineBench:
    """Times batches of drawn pictures, the first one left out.

    Args:
        config: model, method, device, dtype, steps and their like; its manifest does not count.
        prompts: of each picture.
        repeats: batches that are timed.
        threads: of torch, where the device is a CPU.

    Raises:
        JobError: the model or a parameter cannot be used.
    """
    import torch

    from pnp_batch.batches import DEFAULT_BATCH_SIZE
    from pnp_batch.diffusion.tuning import tune
    from pnp_batch.translator import Translator

    images = max(1, (config.batch_size or DEFAULT_BATCH_SIZE) // prompts)
    expected = _plan(config, images, prompts)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        translator = Translator.load(config.model, expected.device, expected.dtype, config.revision)
        how = config.memory_format, config.attention
        tune(translator.model, *how, compiled=config.compile)
        times = [_times(translator, config, images, prompts, n) for n in range(repeats + 1)][1:]
        ceiling = matrix_tflops(expected.device, translator.model.dtype)
    finally:
        torch.set_num_threads(before)
    inversion, generation = (median(some) for some in zip(*times, strict=True))
    rows, whole = images * prompts, inversion + generation
    return EngineBench(
        model=config.model,
        device=expected.device,
        dtype=expected.dtype,
        threads=threads,
        steps=config.steps,
        images=images,
        prompts=prompts,
        repeats=repeats,
        inversions_per_second=images / inversion,
        generations_per_second=rows / generation,
        images_per_second=rows / whole,
        tflop_per_image=expected.tflop / rows,
        published_tflop_per_image=expected.published_tflop / rows,
        tflops=expected.tflop / whole,
        ceiling_tflops=ceiling,
        latent_bytes_per_image=expected.latent_bytes // images,
    )


def _plan(config: RunConfig, images: int, prompts: int) -> Plan:
    """What a job of such a batch costs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work.manifest(folder / "manifest.parquet", images, prompts)
        paths = {"manifest": str(folder / "manifest.parquet"), "output": str(folder / "output")}
        return plan(with_values(config, **paths, cache=None))


def _times(
    translator: Translator, config: RunConfig, images: int, prompts: int, seed: int
) -> tuple[float, float]:
    """Seconds of the inversion and of the generation of a batch of new pictures."""
    drawn = work.pictures(images, seed)
    engine, rows = translator.prepared(drawn, [work.texts(prompts)] * images, config)
    device = translator.model.device
    inverted = _seconds(device, lambda: engine.prepare(rows))
    return inverted, _seconds(device, lambda: list(engine.translate(rows)))


def matrix_tflops(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of the product of large square matrices, the best of several."""
    import torch

    side = SIDES[device]
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.mm(one, other)
    where = torch.device(device)
    times = [_seconds(where, lambda: torch.mm(one, other, out=product)) for _ in range(PRODUCTS)]
    return 2 * side**3 / min(times) / 1e12


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    import torch

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    finish()
    begun = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - begun
