"""The published diffusers code of Plug-and-Play, run from outside and timed part by part.

In: a checkout of github.com/MichalGeyer/pnp-diffusers, a model directory, a picture, prompts. Out:
seconds. `run` of its preprocess.py is called once for a picture, `PNP(config).run_pnp()` of its
pnp.py once for each prompt, with the settings that both have by default.

What the code needs to run here is given to it from outside; no file of it is changed:
- `from_pretrained` of its model parts loads those of the model directory, whatever name and
  revision are asked for; on a CPU in float32, on CUDA in the half precision that it asks for.
- Where it says "cuda" it gets the device. Its `autocast` for CUDA switches itself off without one.
- xformers is answered by nothing: diffusers' own fused attention, which is the default of today's
  diffusers, stays wherever no attention is injected.
- Three transforms of torchvision are stood in for; `Resize(512)` gives the model's resolution.
  (pnp.py also resizes the picture to 512 x 512 and never uses it: a few milliseconds a prompt.)

Its latent scale 0.18215 is hard-coded and stays: with a model of another scale the pictures are
others, the work is the same. Its progress bars are off.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from pnp_batch.models import find

IMPORTS, LOADING = "imports", "loading"
PARTS = INVERSION, RECONSTRUCTION, SAMPLING = "inversion", "reconstruction", "sampling"
GENERAL = {"sd_version": "1.5", "seed": 1}
INVERTING = {"save_steps": 1000, "inversion_prompt": "", "extract_reverse": False}
SAMPLED = {"guidance_scale": 7.5, "negative_prompt": "", "pnp_attn_t": 0.5, "pnp_f_t": 0.8}


class Stopwatch:
    """Seconds of named parts; while an inner part runs, the outer one stands still."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times a `with` block, or as a decorator each call."""
        begun, before = time.perf_counter(), sum(self.seconds.values())
        yield
        inner = sum(self.seconds.values()) - before
        self.seconds[name] += time.perf_counter() - begun - inner


class PublishedCode:
    """The two scripts of a checkout, adapted.

    Args:
        checkout: the folder of preprocess.py, pnp.py and pnp_utils.py.
        model: `demo` or a model directory.
        folder: where latents and pictures are written.
        device: `cpu` or `cuda`.
        watch: gets the seconds of `IMPORTS`, of `LOADING`, and of the `PARTS`; the reconstruction
            with its decoding.
    """

    def __init__(
        self, checkout: str, model: str, folder: Path, watch: Stopwatch, device: str = "cpu"
    ) -> None:
        self._folder, self._watch, self._device = folder, watch, device
        with watch.part(IMPORTS):
            self._preprocess, self._pnp = _adapted(checkout, model, watch, device)

    def translate(
        self, picture: Path, prompts: Sequence[str], *, steps: int, inversion_steps: int
    ) -> None:
        """Translates a picture; `inversion_steps` are those of its reconstruction, too."""
        latents = {"data_path": str(picture), "save_dir": str(self._folder / "latents")}
        asked = {**GENERAL, **INVERTING, **latents, "steps": inversion_steps}
        with self._watch.part(INVERSION):
            self._preprocess.run(SimpleNamespace(**asked))
        paths = {"image_path": str(picture), "latents_path": str(self._folder / "latents_forward")}
        own = {"device": self._device, "output_path": str(self._folder), "n_timesteps": steps}
        for prompt in prompts:
            with self._watch.part(SAMPLING):
                self._pnp.PNP({**GENERAL, **SAMPLED, **paths, **own, "prompt": prompt}).run_pnp()


def _adapted(checkout: str, model: str, watch: Stopwatch, device: str) -> tuple[Any, Any]:
    """The modules preprocess and pnp, as the head of this file says."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    files = find(model)
    kinds = {
        "vae": diffusers.AutoencoderKL,
        "tokenizer": transformers.CLIPTokenizer,
        "text_encoder": transformers.CLIPTextModel,
        "unet": diffusers.UNet2DConditionModel,
        "scheduler": diffusers.DDIMScheduler,
    }
    parts = {name: _part(kind, files.path, watch, device) for name, kind in kinds.items()}
    preprocess, pnp = _imported(checkout, _transforms(files.resolution))
    for module in (preprocess, pnp):
        vars(module).update({kind.__name__: parts[name] for name, kind in kinds.items()})
    vars(preprocess)["device"] = device
    vars(pnp)["StableDiffusionPipeline"] = _pipeline(parts)
    inverting = vars(preprocess)["Preprocess"]
    embeds = inverting.get_text_embeds
    inverting.get_text_embeds = lambda own, *texts: embeds(own, *texts, device=device)
    for name in ("ddim_sample", "decode_latents"):
        setattr(inverting, name, watch.part(RECONSTRUCTION)(getattr(inverting, name)))
    return preprocess, pnp


def _imported(checkout: str, transforms: ModuleType) -> tuple[ModuleType, ModuleType]:
    """Imports both scripts; what stands for torchvision is there for them alone."""
    parent = ModuleType("torchvision")
    vars(parent)["transforms"] = transforms
    stand_ins = {"torchvision": parent, "torchvision.transforms": transforms}
    kept = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    sys.path.insert(0, checkout)
    try:
        return importlib.import_module("preprocess"), importlib.import_module("pnp")
    finally:
        sys.path.remove(checkout)
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(kept)


def _part(kind: Any, path: Path, watch: Stopwatch, device: str) -> SimpleNamespace:  # noqa: ANN401
    """What stands for a class whose `from_pretrained` the published code calls."""

    @watch.part(LOADING)
    def from_pretrained(key: str, subfolder: str, **options: object) -> object:
        asked = {n: v for n, v in options.items() if n == "torch_dtype" and device != "cpu"}
        return kind.from_pretrained(str(path / subfolder), local_files_only=True, **asked)

    return SimpleNamespace(from_pretrained=from_pretrained)


def _pipeline(parts: Mapping[str, SimpleNamespace]) -> SimpleNamespace:
    """What stands for `StableDiffusionPipeline`."""

    def from_pretrained(key: str, **options: object) -> SimpleNamespace:
        loaded = {name: part.from_pretrained(key, name, **options) for name, part in parts.items()}
        pipe = SimpleNamespace(**loaded, enable_xformers_memory_efficient_attention=lambda: None)

        def to(device: str) -> SimpleNamespace:
            for part in (pipe.vae, pipe.text_encoder, pipe.unet):
                part.to(device)
            return pipe

        pipe.to = to
        return pipe

    return SimpleNamespace(from_pretrained=from_pretrained)


def _transforms(side: int) -> ModuleType:
    """What stands for `torchvision.transforms`."""
    import torch

    def resized(image: Image.Image) -> Image.Image:
        return image.resize((side, side), Image.Resampling.BILINEAR)

    def tensor(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255

    def picture(pixels: torch.Tensor) -> Image.Image:
        return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).cpu().numpy())

    module = ModuleType("torchvision.transforms")
    vars(module).update(
        Resize=lambda size: resized, ToTensor=lambda: tensor, ToPILImage=lambda: picture
    )
    return module
