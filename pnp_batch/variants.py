"""Variants: what a comparison sets beside each other, `sdedit:strength=0.7` in, its job out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pnp_batch import config as configuration
from pnp_batch import methods
from pnp_batch.config import OPTIONS, RunConfig
from pnp_batch.errors import InvalidConfig, did_you_mean
from pnp_batch.methods import Method
from pnp_batch.parameters import resolved, set_values
from pnp_batch.presets import PRESETS
from pnp_batch.steps import Sampling

USUAL = (
    *("pnp", "pnp-mask", "p2p", "masactrl", "ddim"),
    *("sdedit-low", "sdedit-medium", "sdedit-high", "reconstruct"),
)
"""What is compared where nobody says what, as far as it is installed."""
# What a variant may set beside the parameters of its method.
SAMPLING = (*(field.name for field in fields(Sampling)), "seed")
LONGEST = 80
# A comma within a value is followed by no name of a method, a colon by no name and `=`.
_BETWEEN = re.compile(r",(?=\s*[A-Za-z][\w-]*\s*(?::|,|$))")
_WITHIN = re.compile(r":(?=\s*[A-Za-z][\w-]*\s*=)")


@dataclass(frozen=True)
class Variant:
    """A method with values of its own.

    Attributes:
        text: as `--methods` says it.
        values: fields of `RunConfig` that it sets, its method among them.
        added: parameters of a plug-in that it sets, as `--set` says them.
    """

    text: str
    values: Mapping[str, Any]
    added: Mapping[str, str]

    @property
    def folder(self) -> str:
        """Its name where only letters, digits, `.`, `_` and `-` may stand."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.text).strip("-.")
        if len(name) <= LONGEST:
            return name
        return f"{name[: LONGEST - 13]}-{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

    def job(self, config: RunConfig) -> RunConfig:
        """The job of this variant, its output and latents below those of a comparison's."""
        added = {**set_values(config.set), **self.added}
        return configuration.with_values(
            config,
            **self.values,
            set=tuple(f"{name}={value}" for name, value in sorted(added.items())),
            output=f"{config.output.rstrip('/')}/{self.folder}",
            cache=config.cache or config.cache_uri,
        )


def variants(text: str, config: RunConfig) -> list[Variant]:
    """Reads a list such as `pnp,sdedit-low,p2p:self_steps=0.6:cross_steps=0.4`.

    Args:
        text: names of methods or presets, each with values behind colons; empty for `USUAL`.
        config: whose values stand where a variant has none of its own.

    Raises:
        InvalidConfig: an unknown name, a value that does not fit, or two variants that are one.
    """
    asked = filter(None, (part.strip(" ,") for part in _BETWEEN.split(text)))
    usual = (name for name in USUAL if _method_of(name) in methods.names())
    found: list[Variant] = []
    for part in list(asked) or usual:
        try:
            variant = _read(part, config)
            job = variant.job(config)
            resolved(methods.get(job.method), job.parameters)
        except InvalidConfig as error:
            raise InvalidConfig(f"--methods {part}: {error}", error.hint) from error
        for other in found:
            _refuse_same(other, variant, config)
        found.append(variant)
    return found


def listed(told: object) -> str:
    """The text of a job file's `methods`, a text or a list of them, as `variants` takes it.

    Raises:
        InvalidConfig: it is neither.
    """
    texts: list[str] = []
    for part in told if isinstance(told, list) else [told]:
        if not isinstance(part, str):
            raise InvalidConfig(
                f"methods: expected a text, got {part!r}", "write pnp:pnp_f_t=0.5, without spaces"
            )
        texts.append(part)
    return ",".join(texts)


def _method_of(name: str) -> str:
    return str(PRESETS.get(name, {}).get("method", name))


def _read(text: str, config: RunConfig) -> Variant:
    name, _, rest = (piece.strip() for piece in text.partition(":"))
    if name not in PRESETS and name not in methods.names():
        near = did_you_mean(name, [*methods.names(), *PRESETS])
        raise InvalidConfig(f"no method or preset {name!r}", near)
    values = dict(PRESETS.get(name, {"method": name}))
    method = methods.get(values.setdefault("method", config.method))
    added: dict[str, str] = {}
    told = [name]
    for piece in _WITHIN.split(rest) if rest else ():
        key, equals, value = (part.strip() for part in piece.partition("="))
        key = key.replace("-", "_")
        if not equals:
            raise InvalidConfig(f"{piece!r} is no NAME=VALUE", f"write {name}:NAME=VALUE")
        if key in OPTIONS:
            values[key] = _parsed(method, key, value)
            value = _shown(values[key])
        else:
            added[_known(method, key)] = value
        told.append(f"{key}={value}")
    return Variant(":".join(told), values, added)


def _known(method: Method, key: str) -> str:
    known = {*method.parameters, *SAMPLING}
    if key not in known:
        raise InvalidConfig(f"{method.name} has no parameter {key!r}", did_you_mean(key, known))
    return key


def _parsed(method: Method, key: str, value: str) -> Any:  # noqa: ANN401 - of the option's type
    option = OPTIONS[_known(method, key)]
    try:
        return option.parsed(value)
    except (ValueError, KeyError) as error:
        wanted = option.type.__name__
        raise InvalidConfig(
            f"{key}={value!r}: expected {wanted}", f"{key}: {option.help}"
        ) from error


def _shown(value: Any) -> str:  # noqa: ANN401 - of an option's type
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _refuse_same(one: Variant, other: Variant, config: RunConfig) -> None:
    if configuration.shaping(one.job(config)) == configuration.shaping(other.job(config)):
        raise InvalidConfig(
            f"--methods: {one.text} and {other.text} are the same", "name each variant once"
        )
    if one.folder == other.folder:
        raise InvalidConfig(
            f"--methods: {one.text} and {other.text} would both be called {one.folder}",
            "compare them in two outputs",
        )
