"""What a job runs on: a connected cluster in; device, dtype, workers and batch size out."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import ray

from pnp_batch import cluster
from pnp_batch.batches import DEFAULT_BATCH_SIZE
from pnp_batch.errors import JobError
from pnp_batch.job import Job
from pnp_batch.models import ModelFiles

# What an actor on a CPU needs: torch and diffusers, and weights stored in half precision that
# are computed in single, with room for activations.
BYTES_OF_PROCESS = 1 << 30
BYTES_A_WEIGHT = 3
# Of a GPU's free memory, and what one branch of a row holds of it, in feature maps as wide as the
# UNet's outermost layers: skip connections, a concatenation, a feed-forward, attention. Reckoned
# from the architecture, not measured on a GPU; a batch that is too large is halved.
SHARE_USED = 0.8
MAPS_A_BRANCH = 24
BRANCHES = 3  # of a row with an image of its own
# Until a cluster has started a machine with a GPU, its image pulled.
GPU_SECONDS = 900.0
LARGEST_GPU_BATCH = 32  # a current GPU is busy with fewer


class NoGpu(JobError):
    """The job asks for a GPU that the cluster does not have."""


@dataclass(frozen=True)
class Resources:
    """What a job runs on.

    Attributes:
        workers: actors that each hold the model,
        most_workers: or so many, as far as there is room for them.
        gpus_per_worker: share of a GPU that each has, 0 on a CPU.
        threads: of each, on a CPU.
        accelerator: what the device calls itself.
        batch_size: rows of a UNet batch.
    """

    device: str
    dtype: str
    workers: int
    most_workers: int
    gpus_per_worker: float
    threads: int
    batch_size: int
    accelerator: str


@dataclass(frozen=True)
class _Gpu:
    """What a worker sees of its GPU."""

    has_bfloat16: bool
    free_bytes: int
    name: str


@ray.remote
def _look() -> _Gpu:
    import torch

    has_bfloat16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _Gpu(has_bfloat16, int(torch.cuda.mem_get_info()[0]), torch.cuda.get_device_name())


def resources(job: Job) -> Resources:
    """Settles what was left open from what there is.

    Raises:
        NoGpu: a GPU is asked for, and there is none.
    """
    config, available = job.config, cluster.gpus()
    device = config.device
    if device == "auto":
        apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        device = "cuda" if available else "mps" if apple and not config.address else "cpu"
    if device == "cuda" and not available and not config.address:
        raise NoGpu("--device cuda, but the cluster has no GPU", "use --device cpu")
    share = (config.gpus_per_worker or 1.0) if device == "cuda" else 0.0
    workers = config.workers or _auto_workers(job.model, available, share)
    most = config.max_workers or workers
    dtype, batch_size = config.dtype, config.batch_size
    accelerator = platform.processor() or platform.machine()
    if device == "cuda":
        gpu = _first_gpu(share)
        accelerator = gpu.name
        if dtype == "auto":
            dtype = "bfloat16" if gpu.has_bfloat16 else "float16"
        side = int(job.settings["resolution"])
        free = gpu.free_bytes * min(1.0, share)
        batch_size = batch_size or gpu_batch_size(job.model, side, dtype, free)
    return Resources(
        device=device,
        dtype="float32" if dtype == "auto" else dtype,
        workers=min(workers, most),
        most_workers=most,
        gpus_per_worker=share,
        threads=cluster.threads(most),
        batch_size=batch_size or DEFAULT_BATCH_SIZE,
        accelerator=accelerator,
    )


def _first_gpu(share: float) -> _Gpu:
    """What a worker sees of a GPU. A cluster that grows on demand may have to bring it first."""
    looking = _look.options(num_gpus=share).remote()
    if not ray.wait([looking], timeout=GPU_SECONDS)[0]:
        ray.cancel(looking)
        told = f"--device cuda, but no GPU was free within {GPU_SECONDS / 60:g} minutes"
        raise NoGpu(told, "run the same command later, or use --device cpu")
    found: _Gpu = ray.get(looking)
    return found


def gpu_batch_size(model: ModelFiles, resolution: int, dtype: str, free_bytes: float) -> int:
    """Rows of a UNet batch that fit so many free bytes beside the model, 1 to 32."""
    width = int(model.configs["unet"]["block_out_channels"][0])
    number = 4 if dtype == "float32" else 2
    branch = MAPS_A_BRANCH * width * (resolution // model.scale_factor) ** 2 * number
    left = SHARE_USED * free_bytes - model.weight_bytes * number / 2  # stored in half precision
    return max(1, min(LARGEST_GPU_BATCH, int(left / (BRANCHES * branch))))


def _auto_workers(model: ModelFiles, available: float, share: float) -> int:
    """One actor for each GPU share; on CPUs one for each core, as far as memory reaches."""
    if share:
        return max(1, int(available / share))
    # Single-threaded actors do more together than threads do for one of them.
    needed = BYTES_OF_PROCESS + BYTES_A_WEIGHT * model.weight_bytes
    memory = ray.cluster_resources().get("memory", 0.0)
    return max(1, min(cluster.cores(), int(memory * 0.8 / needed)))
