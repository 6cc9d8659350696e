"""The parameters of the translation methods: what shapes a picture beyond how it is sampled.

One list for all methods of the package, so that what several of them take is called and checked the
same. Its fields are fields of `RunConfig`, flags of `run`, and keys of a manifest's column
`parameters`. A method names those it takes; None stands for its own default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Protocol

from pnp_batch import option as options
from pnp_batch.errors import InvalidConfig, did_you_mean
from pnp_batch.layers import ATTENDING, DECODER, canonical
from pnp_batch.option import Option, flag, option

INVERSIONS = ("ddim", "negative-prompt", "null-text", "direct", "edit-friendly")
MASK_MODES = ("foreground", "background", "both")


def _share(default: float, help: str, **more: Any) -> Any:  # noqa: ANN401 - dataclass field
    return option(default, help, type=float, low=0.0, high=1.0, shapes=True, **more)


def _weight(help: str) -> Any:  # noqa: ANN401 - dataclass field
    return option(None, help, type=float, low=0.0, high=1e6, shapes=True)


def _count(default: int | None, help: str, low: int = 0, high: int = 10_000) -> Any:  # noqa: ANN401
    return option(default, help, type=int, low=low, high=high, shapes=True)


def _layers(default: str, known: tuple[int, ...], help: str) -> Any:  # noqa: ANN401
    return option(default, help, form=partial(canonical, known=known), shapes=True)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of all methods."""

    guidance_scale: float = option(
        7.5,
        "classifier-free guidance",
        type=float,
        low=0.0,
        high=1000.0,
        shapes=True,
        per_row=True,
    )
    negative_prompt: str = option(
        "", "what the pictures should not show", shapes=True, per_row=True
    )
    pnp_f_t: float = _share(
        0.8, "share of the first sampling steps with feature injection; 0 switches it off"
    )
    pnp_attn_t: float = _share(
        0.5, "share of the first sampling steps with self-attention injection; 0 switches it off"
    )
    strength: float = _share(
        0.75,
        "share of the last sampling steps that sdedit, diffuseit and diffusionclip run; 0 keeps "
        "the image, 1 begins at noise",
    )
    pnp_f_layers: str = _layers(
        "4", DECODER, "decoder layers, of 0-11, whose features are injected, such as 4 or 4,7-9"
    )
    pnp_attn_layers: str = _layers(
        "4-11", ATTENDING, "decoder layers, of 3-11, whose self-attention is injected"
    )
    inversion: str = option(
        "ddim",
        "how the way back from an inverted image is kept on its trajectory",
        choices=INVERSIONS,
        shapes=True,
    )
    subject: str = option(
        "",
        "words of the prompts that name the subject, for masks (default: told by the method)",
        shapes=True,
        per_row=True,
    )
    mask_mode: str = option("foreground", "where pnp-mask injects", choices=MASK_MODES, shapes=True)
    mask_threshold: float = _share(0.1, "cross-attention, of 0..1, that belongs to the subject")
    mask_dilation: int = _count(0, "cells of the mask by which it grows", high=16)
    mask_softness: float = option(
        0.0,
        "width of the mask's soft edge, in its cells",
        type=float,
        low=0.0,
        high=16.0,
        shapes=True,
    )
    cross_steps: float = _share(
        0.8, "share of the first sampling steps in which p2p keeps the source's cross-attention"
    )
    self_steps: float = _share(
        0.4, "share of the first sampling steps in which p2p keeps the source's self-attention"
    )
    reweight: str = option(
        "",
        "p2p: factors of words' cross-attention, such as red=2,fluffy=0.5",
        shapes=True,
        per_row=True,
    )
    local_blend: bool = option(
        False, "p2p: outside the subject's mask, keep the source", type=bool, shapes=True
    )
    masactrl_step: int = _count(4, "step from which on masactrl takes the source's keys, values")
    masactrl_layer: int = _count(
        10, "attention layer, of the UNet's 16, from which on it does", high=15
    )
    masactrl_mask: bool = option(
        False, "masactrl: subject and background attend each to their own", type=bool, shapes=True
    )
    clip: str = option(
        "auto",
        "CLIP of the guided methods: `demo`, a directory, or a hub id (default: by model)",
        metavar="NAME_OR_DIR",
        shapes=True,
    )
    optimiser_steps: int | None = _count(None, "steps of the guided methods' optimiser", low=0)
    learning_rate: float | None = _weight("learning rate of the guided methods' optimiser")
    cutouts: int | None = _count(None, "augmented cut-outs that CLIP sees", low=1, high=256)
    clip_weight: float | None = _weight("weight of the guided methods' CLIP loss")
    structure_weight: float | None = _weight("weight of their structure loss")
    source_weight: float | None = _weight("weight of what keeps the guidance image")
    latent_weight: float | None = _weight("flexit: weight of the latents' change")
    sparsity_weight: float | None = _weight("text2live: weight of the edit layer's opacity")
    training_images: int | None = _count(
        None, "diffusionclip: pictures that the denoiser is tuned on", low=1, high=1000
    )


OPTIONS: dict[str, Option] = options.of(Parameters)
PER_JOB = ("clip",)
"""What rows may not override: a network is loaded once, from where the job says."""
OWN_COLUMNS = ("guidance_scale", "negative_prompt", "pnp_f_t", "pnp_attn_t", "strength")
"""Those that manifests and results have a column for; the others share `parameters`."""


class Takes(Protocol):
    """What is to be known of a method to settle its parameters."""

    name: str
    parameters: tuple[str, ...]
    defaults: Mapping[str, Any]
    options: Mapping[str, Option]

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Raises `InvalidConfig` where values do not fit together."""


def resolved(method: Takes, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all parameters that a method takes.

    Args:
        method: of the package, or a plug-in.
        given: by name, of any methods; None and what the method does not take are passed over.

    Raises:
        InvalidConfig: a value that the parameter or the method does not take.
    """
    found = {}
    for name in method.parameters:
        value = given.get(name)
        if value is None:
            value = method.defaults.get(name, _DEFAULTS.get(name))
        option = _option(method, name)
        if isinstance(value, str) and name in method.options and option.type is not str:
            with suppress(ValueError, KeyError):  # `checked` says what it should be
                value = option.parsed(value)
        found[name] = option.checked(name, value)
    method.check(found)
    return found


def set_values(given: tuple[str, ...]) -> dict[str, str]:
    """What `--set NAME=VALUE` said, by name; `resolved` makes it what the method wants.

    Raises:
        InvalidConfig: one is no such pair.
    """
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidConfig(f"set: {text!r} is no NAME=VALUE", "see --set")
        found[name.replace("-", "_")] = value
    return found


def of_row(method: Takes, told: str | None) -> dict[str, Any]:
    """What a row's column `parameters` says, by name.

    Raises:
        InvalidConfig: it is no JSON object, names no parameter, or one that no row may set.
    """
    if not told:
        return {}
    try:
        found = json.loads(told)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidConfig(
            f"parameters: {told[:60]!r} is no JSON object", 'write {"mask_mode": "both"}'
        )
    known = {*OPTIONS, *method.options}
    for name in found:
        if name not in known:
            near = did_you_mean(name, known)
            raise InvalidConfig(f"parameters: {name!r} is unknown", near)
        if name in PER_JOB:
            raise InvalidConfig(f"parameters: {name} is of the whole job", f"use {flag(name)}")
        if name in OWN_COLUMNS:
            raise InvalidConfig(
                f"parameters: {name} has a column of its own", f"write it into the column {name}"
            )
    return found


def shared(method: Takes, values: Mapping[str, Any]) -> str:
    """Those values that all rows of a UNet batch have in common, as JSON."""
    return as_json({n: v for n, v in values.items() if not _option(method, n).per_row})


def own(method: Takes, values: Mapping[str, Any]) -> str:
    """Those that each row of a batch has for itself and no column has, as JSON."""
    told = {n: v for n, v in values.items() if _option(method, n).per_row}
    return as_json({n: v for n, v in told.items() if n not in OWN_COLUMNS})


def as_json(values: Mapping[str, Any]) -> str:
    """Parameters as the results and manifests hold them; equal ones as equal texts."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False)


def _option(method: Takes, name: str) -> Option:
    return OPTIONS.get(name) or method.options[name]


_DEFAULTS = {field.name: field.default for field in fields(Parameters)}
