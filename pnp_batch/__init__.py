"""Plug-and-Play image translation of whole datasets (Tumanyan et al., CVPR 2023) on Ray Data.

The library is what the command line calls: `Translator` translates pictures in this process,
`run(RunConfig(...))` is the whole job. Both are imported on first use, so that importing the
package costs neither torch nor Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RunConfig", "Translator", "__version__", "run"]

if TYPE_CHECKING:
    from pnp_batch.config import RunConfig
    from pnp_batch.launch import run
    from pnp_batch.translator import Translator

_HOME = {
    "RunConfig": "pnp_batch.config",
    "Translator": "pnp_batch.translator",
    "run": "pnp_batch.launch",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type is that of the attribute asked for
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
