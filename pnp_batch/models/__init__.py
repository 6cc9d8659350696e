"""Models: a name in, checked files with a digest out; and, on a worker, the loaded model.

Finding, checking and digesting need neither torch nor the network for `demo` and for local
directories, so that a wrong model is refused before any worker starts.
"""

from pnp_batch.models.check import CONFIGS, WEIGHTS
from pnp_batch.models.files import DEMO, ModelFiles, find, from_hub, is_directory
from pnp_batch.models.loaded import Decoding, StableDiffusion

__all__ = [
    "CONFIGS",
    "DEMO",
    "WEIGHTS",
    "Decoding",
    "ModelFiles",
    "StableDiffusion",
    "find",
    "from_hub",
    "is_directory",
]
