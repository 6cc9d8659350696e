"""The configuration of a job: one frozen dataclass with defaults, limits and help of every option.

Its fields are at once the Python API, the keys of a job file and the options of `pnp-batch run`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any

from pnp_batch.errors import InvalidConfig, did_you_mean
from pnp_batch.steps import Sampling

FITS = ("crop", "stretch", "pad")
IMAGE_FORMATS = ("png", "jpg", "webp")
FILES, WEBDATASET = "files", "webdataset"
SINKS = (FILES, WEBDATASET)
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MEMORY_FORMATS = ("auto", "contiguous", "channels-last")
ATTENTIONS = ("fused", "plain")


@dataclass(frozen=True)
class Option:
    """How one field of `RunConfig` looks to a user, and which values it takes."""

    help: str
    type: type = str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    shapes: bool = False  # part of the fingerprint: another value gives another picture


def _option(default: Any, help: str, **more: Any) -> Any:  # noqa: ANN401 - dataclass field
    return field(default=default, metadata={"option": Option(help, **more)})


@dataclass(frozen=True)
class RunConfig:
    """One job. Raises `InvalidConfig` when a value is out of range or two do not fit together."""

    manifest: str
    output: str
    model: str = _option(
        "demo", "`demo`, a diffusers directory, or a hub id", metavar="NAME_OR_DIR"
    )
    revision: str | None = _option(None, "revision of a hub model")
    method: str = _option("pnp", "translation method, see `pnp-batch methods`", shapes=True)
    steps: int = _option(50, "sampling steps", type=int, low=1, high=1000, shapes=True)
    inversion_steps: int | None = _option(
        None,
        "inversion steps, a multiple of --steps (default: as many)",
        type=int,
        low=1,
        high=1000,
        shapes=True,
    )
    guidance_scale: float = _option(
        7.5, "classifier-free guidance", type=float, low=0.0, high=1000.0, shapes=True
    )
    negative_prompt: str = _option("", "what the pictures should not show", shapes=True)
    pnp_f_t: float = _option(
        0.8,
        "share of the first sampling steps with feature injection; 0 switches it off",
        type=float,
        low=0.0,
        high=1.0,
        shapes=True,
    )
    pnp_attn_t: float = _option(
        0.5,
        "share of the first sampling steps with self-attention injection; 0 switches it off",
        type=float,
        low=0.0,
        high=1.0,
        shapes=True,
    )
    strength: float = _option(
        0.75,
        "share of the last sampling steps that sdedit runs; 0 keeps the image, 1 begins at noise",
        type=float,
        low=0.0,
        high=1.0,
        shapes=True,
    )
    deep_every: int = _option(
        1,
        "the whole UNet in every N-th step only, its outermost layers in those between",
        type=int,
        low=1,
        high=1000,
        shapes=True,
    )
    resolution: int | None = _option(
        None,
        "side of the square working image (default: the model's own)",
        type=int,
        low=8,
        high=4096,
        shapes=True,
    )
    fit: str = _option("crop", "how an image becomes square", choices=FITS, shapes=True)
    cache: str | None = _option(None, "latent cache (default: OUTPUT/latents)", metavar="URI")
    image_format: str = _option(
        "png", "format of the written images", choices=IMAGE_FORMATS, shapes=True
    )
    sink: str = _option(
        FILES,
        "how images are written: each as a file, or many with their records as WebDataset shards",
        choices=SINKS,
        shapes=True,
    )
    provenance: bool = _option(
        True, "write into every image how it was made", type=bool, shapes=True
    )
    workers: int | None = _option(
        None, "actors that each hold the model (default: one per GPU)", type=int, low=1
    )
    gpus_per_worker: float | None = _option(
        None, "GPU share of an actor (default: 1 where there are GPUs)", type=float, low=0.0
    )
    batch_size: int | None = _option(
        None, "rows per UNet batch (default: by device)", type=int, low=1, high=1024
    )
    device: str = _option("auto", "where the model runs", choices=DEVICES, shapes=True)
    dtype: str = _option(
        "auto",
        "float32 on CPU, bfloat16 on CUDA where it has it",
        choices=DTYPES,
        shapes=True,
    )
    memory_format: str = _option(
        "auto", "of feature maps: channels-last on CUDA, else contiguous", choices=MEMORY_FORMATS
    )
    attention: str = _option(
        "fused", "kernels of attention; plain ones hold all probabilities", choices=ATTENTIONS
    )
    compile: bool = _option(
        False, "compile the UNet's blocks first; pays off in long jobs", type=bool
    )
    limit: int | None = _option(None, "only the first N rows", type=int, low=1)
    seed: int = _option(0, "seed of the job", type=int, shapes=True)
    max_failed: float = _option(
        1.0,
        "share of failed rows beyond which the run stops early, exit code 3",
        type=float,
        low=0.0,
        high=1.0,
    )
    allow_root: tuple[str, ...] = _option(
        (), "further local folder that image paths may lie in (repeatable)", metavar="DIR"
    )
    allow_host: tuple[str, ...] = _option(
        (), "host that http(s) image URIs may name (repeatable)", metavar="HOST"
    )
    max_image_mib: float = _option(
        64.0, "largest encoded image that is read, MiB", type=float, low=0.001
    )
    max_image_mpixels: float = _option(
        50.0, "largest image that is decoded, megapixels", type=float, low=0.0001
    )
    read_timeout: float = _option(
        10.0, "longest time that reading one image may take, seconds", type=float, low=0.1
    )
    row_timeout: float = _option(
        1800.0,
        "longest time that translating one row may take, seconds; a batch has it for each row",
        type=float,
        low=0.1,
    )
    storage_patience: float = _option(
        120.0,
        "how long a failing call of the output's or the cache's storage is tried again, seconds",
        type=float,
        low=0.0,
    )
    drain_timeout: float = _option(
        25.0,
        "how long an interrupted run may finish what is in flight, seconds",
        type=float,
        low=0.0,
    )
    wait: bool = _option(
        False, "wait while another run is writing to the output (default: refuse)", type=bool
    )
    address: str | None = _option(
        None, "an existing Ray cluster (default: a private local one)", metavar="ADDR"
    )

    def __post_init__(self) -> None:
        """Brings each value to its field's one type and refuses what no job can run with."""
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, _checked(name, option, getattr(self, name)))
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
    def inversion(self) -> int:
        """Inversion steps, resolved."""
        return self.sampling.inversion

    @property
    def cache_uri(self) -> str:
        """Where the latent cache lies."""
        return self.cache or f"{self.output.rstrip('/')}/latents"

    def as_dict(self) -> dict[str, Any]:
        """Every field as JSON holds it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


# A user and a password before the host; abfs://container@account is none.
_CREDENTIALS = re.compile(r"[A-Za-z0-9+.-]+://[^/@]*:[^/@]*@")


def _named(option_field: Field[Any]) -> tuple[str, Option]:
    option: Option = option_field.metadata["option"]
    return option_field.name, option


def _checked(name: str, option: Option, value: Any) -> Any:  # noqa: ANN401
    default = default_of(name)
    if value is None and default is None:
        return None
    if isinstance(default, tuple):
        parts = tuple(value) if isinstance(value, list | tuple) else (value,)
        return tuple(_typed(name, option, part) for part in parts)
    value = _typed(name, option, value)
    if option.choices and value not in option.choices:
        raise InvalidConfig(f"{name}: unknown value {value!r}", did_you_mean(value, option.choices))
    inside = (option.low is None or value >= option.low) and (
        option.high is None or value <= option.high
    )
    if not inside or value == math.inf:
        low, high = (("" if b is None else f"{b:g}") for b in (option.low, option.high))
        raise InvalidConfig(f"{name}: {value!r} is outside {low}..{high}", f"see {flag(name)}")
    return value


def _typed(name: str, option: Option, value: Any) -> Any:  # noqa: ANN401
    right = (int, float) if option.type is float else option.type
    if not isinstance(value, right) or isinstance(value, bool) != (option.type is bool):
        wanted = option.type.__name__
        raise InvalidConfig(f"{name}: expected {wanted}, got {value!r}", f"see {flag(name)}")
    # 7 and 7.0 are one value, with one fingerprint
    return option.type(value)


OPTIONS: dict[str, Option] = dict(_named(f) for f in fields(RunConfig) if f.default is not MISSING)
SHAPING = tuple(name for name, option in OPTIONS.items() if option.shapes)


def flag(name: str) -> str:
    """The command-line flag of a field: `pnp_f_t` is `--pnp-f-t`."""
    return "--" + name.replace("_", "-")


def switch(name: str, on: bool) -> str:
    """The flag that switches a field on or off: `--provenance`, `--no-provenance`."""
    return flag(name) if on else flag(f"no_{name}")


def default_of(name: str) -> Any:  # noqa: ANN401 - the type is the field's
    """The default of a field of `RunConfig`."""
    return next(f.default for f in fields(RunConfig) if f.name == name)


def shaping(config: RunConfig) -> dict[str, Any]:
    """The settings that shape a picture, resolved where that needs no model."""
    values = {name: getattr(config, name) for name in SHAPING}
    return {**values, "inversion_steps": config.inversion}


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short hash of the settings that shape a picture (and of the model's digest)."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_values(config: RunConfig, **values: Any) -> RunConfig:
    """A copy of `config` with some fields replaced, validated again."""
    return replace(config, **values)
