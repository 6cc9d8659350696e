"""The configuration of a job: one frozen dataclass with defaults, limits and help of every option.

Its fields are at once the Python API, the keys of a job file and the options of `pnp-batch run`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pnp_batch import option as options
from pnp_batch.errors import InvalidConfig
from pnp_batch.option import Option, flag, option
from pnp_batch.parameters import OPTIONS as PARAMETERS
from pnp_batch.parameters import OWN_COLUMNS, Parameters, set_values
from pnp_batch.steps import Sampling

FITS = ("crop", "stretch", "pad")
IMAGE_FORMATS = ("png", "jpg", "webp")
FILES, WEBDATASET = "files", "webdataset"
SINKS = (FILES, WEBDATASET)
NO_CACHE = "none"  # a folder of that name is ./none
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MEMORY_FORMATS = ("auto", "contiguous", "channels-last")
ATTENTIONS = ("fused", "plain")


@dataclass(frozen=True)
class RunConfig(Parameters):
    """One job. Raises `InvalidConfig` when a value is out of range or two do not fit together."""

    manifest: str
    output: str
    model: str = option("demo", "`demo`, a diffusers directory, or a hub id", metavar="NAME_OR_DIR")
    revision: str | None = option(None, "revision of a hub model")
    method: str = option("pnp", "translation method, see `pnp-batch methods`", shapes=True)
    steps: int = option(50, "sampling steps", type=int, low=1, high=1000, shapes=True)
    inversion_steps: int | None = option(
        None,
        "inversion steps, a multiple of --steps (default: as many)",
        type=int,
        low=1,
        high=1000,
        shapes=True,
    )
    set: tuple[str, ...] = option(
        (),
        "parameter of a method that is installed beside the package's own (repeatable)",
        metavar="NAME=VALUE",
        shapes=True,
    )
    deep_every: int = option(
        1,
        "the whole UNet in every N-th step only, its outermost layers in those between",
        type=int,
        low=1,
        high=1000,
        shapes=True,
    )
    resolution: int | None = option(
        None,
        "side of the square working image (default: the model's own)",
        type=int,
        low=8,
        high=4096,
        shapes=True,
    )
    fit: str = option("crop", "how an image becomes square", choices=FITS, shapes=True)
    cache: str | None = option(
        None, "latent cache, or `none` (default: OUTPUT/latents)", metavar="URI"
    )
    image_format: str = option(
        "png", "format of the written images", choices=IMAGE_FORMATS, shapes=True
    )
    sink: str = option(
        FILES,
        "how images are written: each as a file, or many with their records as WebDataset shards",
        choices=SINKS,
        shapes=True,
    )
    provenance: bool = option(
        True, "write into every image how it was made", type=bool, shapes=True
    )
    workers: int | None = option(
        None,
        "actors that each hold the model (default: one per GPU); of MIN:MAX as many as there is "
        "room for, now and when nodes join",
        type=int,
        low=1,
        metavar="N|MIN:MAX",
        upto="max_workers",
    )
    max_workers: int | None = option(
        None, "the MAX of --workers MIN:MAX", type=int, low=1, metavar="N"
    )
    gpus_per_worker: float | None = option(
        None, "GPU share of an actor (default: 1 where there are GPUs)", type=float, low=0.0
    )
    batch_size: int | None = option(
        None, "rows per UNet batch (default: by device)", type=int, low=1, high=1024
    )
    device: str = option("auto", "where the model runs", choices=DEVICES, shapes=True)
    dtype: str = option(
        "auto",
        "float32 on CPU, bfloat16 on CUDA where it has it",
        choices=DTYPES,
        shapes=True,
    )
    memory_format: str = option(
        "auto", "of feature maps (default: contiguous)", choices=MEMORY_FORMATS
    )
    attention: str = option(
        "fused", "kernels of attention; plain ones hold all probabilities", choices=ATTENTIONS
    )
    compile: bool = option(
        False, "compile the UNet's blocks first; pays off in long jobs", type=bool
    )
    limit: int | None = option(None, "only the first N rows", type=int, low=1)
    seed: int = option(0, "seed of the job", type=int, shapes=True)
    max_failed: float = option(
        1.0,
        "share of failed rows beyond which the run stops early, exit code 3",
        type=float,
        low=0.0,
        high=1.0,
    )
    allow_root: tuple[str, ...] = option(
        (), "further local folder that image paths may lie in (repeatable)", metavar="DIR"
    )
    allow_host: tuple[str, ...] = option(
        (), "host that http(s) image URIs may name (repeatable)", metavar="HOST"
    )
    max_image_mib: float = option(
        64.0, "largest encoded image that is read, MiB", type=float, low=0.001
    )
    max_image_mpixels: float = option(
        50.0, "largest image that is decoded, megapixels", type=float, low=0.0001
    )
    read_timeout: float = option(
        10.0, "longest time that reading one image may take, seconds", type=float, low=0.1
    )
    row_timeout: float = option(
        1800.0,
        "longest time that translating one row may take, seconds; a batch has it for each row",
        type=float,
        low=0.1,
    )
    storage_patience: float = option(
        120.0,
        "how long a failing call of the output's or the cache's storage is tried again, seconds",
        type=float,
        low=0.0,
    )
    budget_hours: float | None = option(
        None,
        "stop cleanly once the output has taken so many hours of workers in all, GPU hours on GPUs",
        type=float,
        low=0.0,
    )
    drain_timeout: float = option(
        25.0,
        "how long an interrupted run may finish what is in flight, seconds",
        type=float,
        low=0.0,
    )
    wait: bool = option(
        False, "wait while another run is writing to the output (default: refuse)", type=bool
    )
    address: str | None = option(
        None, "an existing Ray cluster (default: a private local one)", metavar="ADDR"
    )

    def __post_init__(self) -> None:
        """Brings each value to its field's one type and refuses what no job can run with."""
        for name, known in OPTIONS.items():
            least, largest = known.ends(name, getattr(self, name))
            object.__setattr__(self, name, _checked(name, known, least))
            if largest is not None:
                object.__setattr__(self, known.upto, largest)
        if self.max_workers is not None and self.max_workers < (self.workers or 1):
            raise InvalidConfig(
                f"max_workers is {self.max_workers}, less than workers, {self.workers}",
                "see --workers",
            )
        set_values(self.set)
        for name in ("manifest", "output", "cache"):
            if _CREDENTIALS.match(getattr(self, name) or ""):
                raise InvalidConfig(
                    f"{name}: credentials in a URI end up in logs and records",
                    "leave them out of the URI and set them in the environment",
                )
        if self.inversion_steps is not None and self.inversion_steps % self.steps:
            raise InvalidConfig(
                f"inversion_steps is {self.inversion_steps}, not a multiple of steps, {self.steps}",
                f"use --inversion-steps {max(1, self.inversion_steps // self.steps) * self.steps}",
            )

    @property
    def sampling(self) -> Sampling:
        """How it samples and inverts."""
        return Sampling(**{field.name: getattr(self, field.name) for field in fields(Sampling)})

    @property
    def most_workers(self) -> int | None:
        """How many workers there may be; None where nobody has said."""
        return self.max_workers or self.workers

    @property
    def parameters(self) -> dict[str, Any]:
        """The values of all methods' parameters."""
        own = {name: getattr(self, name) for name in PARAMETERS}
        return {**own, **set_values(self.set)}

    @property
    def cache_uri(self) -> str | None:
        """Where the latent cache lies; None where no inversion is kept."""
        if self.cache == NO_CACHE:
            return None
        return self.cache or f"{self.output.rstrip('/')}/latents"

    def as_dict(self) -> dict[str, Any]:
        """Every field as JSON holds it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


# A user and a password before the host; abfs://container@account is none.
_CREDENTIALS = re.compile(r"[A-Za-z0-9+.-]+://[^/@]*:[^/@]*@")


def _checked(name: str, option: Option, value: Any) -> Any:  # noqa: ANN401
    default = default_of(name)
    if value is None and default is None:
        return None
    if isinstance(default, tuple):
        parts = tuple(value) if isinstance(value, list | tuple) else (value,)
        return tuple(option.checked(name, part) for part in parts)
    return option.checked(name, value)


OPTIONS: dict[str, Option] = options.of(RunConfig)
ADDED = {"set", *PARAMETERS} - {*OWN_COLUMNS}
SHAPING = tuple(name for name, option in OPTIONS.items() if option.shapes)


def switch(name: str, on: bool) -> str:
    """The flag that switches a field on or off: `--provenance`, `--no-provenance`."""
    return flag(name) if on else flag(f"no_{name}")


def default_of(name: str) -> Any:  # noqa: ANN401 - the type is the field's
    """The default of a field of `RunConfig`."""
    return next(f.default for f in fields(RunConfig) if f.name == name)


def shaping(config: RunConfig) -> dict[str, Any]:
    """The settings that shape a picture, resolved where that needs no model."""
    values = {name: getattr(config, name) for name in SHAPING}
    # What an older version did not know is told where it is not as it always was.
    new = {name for name in SHAPING if name in ADDED and values[name] == default_of(name)}
    told = {name: value for name, value in values.items() if name not in new}
    return {**told, "inversion_steps": config.sampling.inversion}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short hash of the settings that shape a picture (and of the model's digest)."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_values(config: RunConfig, **values: Any) -> RunConfig:
    """A copy of `config` with some fields replaced, validated again."""
    return replace(config, **values)
