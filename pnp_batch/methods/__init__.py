"""The translation methods, by name: those of the package and those of installed plug-ins.

A plug-in names a subclass of `Method` in its entry-point group `pnp_batch.methods`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from pnp_batch.errors import InvalidConfig, did_you_mean
from pnp_batch.methods.base import Asked, Batch, Cost, Method

__all__ = ["GROUP", "KNOWN", "Asked", "Batch", "Cost", "Method", "added", "get", "names"]

GROUP = "pnp_batch.methods"
_OWN = {
    "copy": "pnp_batch.methods.copy:Copy",
    "ddim": "pnp_batch.methods.ddim:DDIM",
    "masactrl": "pnp_batch.methods.masactrl:MasaCtrl",
    "p2p": "pnp_batch.methods.p2p:P2P",
    "diffuseit": "pnp_batch.methods.diffuseit:DiffuseIT",
    "diffusionclip": "pnp_batch.methods.diffusionclip:DiffusionCLIP",
    "flexit": "pnp_batch.methods.flexit:FlexIT",
    "pnp": "pnp_batch.methods.pnp:PlugAndPlay",
    "pnp-mask": "pnp_batch.methods.pnp_mask:MaskedPlugAndPlay",
    "reconstruct": "pnp_batch.methods.reconstruct:Reconstruct",
    "sdedit": "pnp_batch.methods.sdedit:SDEdit",
    "text2live": "pnp_batch.methods.text2live:Text2LIVE",
    "vqgan-clip": "pnp_batch.methods.vqgan_clip:VQGANCLIP",
}


@lru_cache(maxsize=1)
def _plugins() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=GROUP) if e.name not in _OWN}


def names() -> list[str]:
    """All method names, sorted."""
    return sorted({*_OWN, *_plugins()})


@lru_cache(maxsize=64)
def get(name: str) -> Method:
    """The method of a name. Raises `InvalidConfig` for an unknown name or a broken plug-in."""
    if name in _OWN:
        module, _, kind = _OWN[name].partition(":")
        own: Method = getattr(import_module(module), kind)()
        return own
    if name not in _plugins():
        raise InvalidConfig(f"method {name!r} is unknown", did_you_mean(name, names()))
    try:
        made = _plugins()[name].load()()
    except (ImportError, AttributeError, TypeError) as error:
        told = f"method {name!r}: {_plugins()[name].value} cannot be loaded: {error}"
        raise InvalidConfig(told, "mend or uninstall the package that brings it") from error
    if not isinstance(made, Method):
        raise InvalidConfig(
            f"method {name!r}: its entry point is no Method", "see CONTRIBUTING, `Add a method`"
        )
    return made


def added() -> set[str]:
    """Names of the parameters that plug-ins add, as far as these can be loaded."""
    found: set[str] = set()
    for name in _plugins():
        with suppress(InvalidConfig):
            found |= get(name).options.keys()
    return found


class _Known(Mapping[str, Method]):
    """All methods by name; a plug-in is loaded when it is asked for."""

    def __getitem__(self, name: str) -> Method:
        if name not in names():
            raise KeyError(name)
        return get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(names())

    def __len__(self) -> int:
        return len(names())


KNOWN: Mapping[str, Method] = _Known()
