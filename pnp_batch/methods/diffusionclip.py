"""DiffusionCLIP: the denoiser itself is tuned to turn one text's pictures into another's.

Kim, Kwon, Ye: DiffusionCLIP: Text-Guided Diffusion Models for Robust Image Manipulation, CVPR 2022,
arXiv 2110.02711.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pnp_batch.methods.base import Batch, Cost, Method
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.schedule import Schedule
    from pnp_batch.diffusion.unet import UNet

KEPT = 8  # tuned copies, of the texts used last; one of Stable Diffusion 1.5 takes 3.4 GB
CHAIN = 6  # steps back from noise while a copy is tuned


class DiffusionCLIP(Method):
    """The guidance image inverted through the last `int(steps * strength)` of the steps, and
    sampled back without guidance by a copy of the UNet that is tuned for the row's two texts.

    Unlike the published one, whose denoisers know no texts but one kind of picture each, the UNet
    has the source prompt, in either direction, and makes its training pictures from it: fewer, from
    seeds that the text gives, so that no row depends on others. Each step of the optimiser takes
    one of them. The copy is tuned in float32; losses are those of decoded pictures. Without a
    source prompt the empty text takes its place.

    Published are 40 steps up to t = 400 or 500 of 1000; the noise is as strong there as Stable
    Diffusion's at a `strength` of 0.57 or 0.7. Published are 250 steps of the optimiser on 50
    pictures, at 8e-6 for a denoiser of 114 million weights. The rate given here is meant for such
    a one, too: the embedded model is tuned at 1e-4, Stable Diffusion 1.5 at 1e-6, on which nobody
    has tried it.
    """

    name = "diffusionclip"
    summary = "DiffusionCLIP: the denoiser tuned for source and target text, then one pass"
    paper = "Kim et al., CVPR 2022, arXiv 2110.02711"
    wants = ("source_prompt",)
    parameters = (
        *("clip", "strength", "optimiser_steps", "learning_rate", "training_images"),
        *("clip_weight", "source_weight"),
    )
    defaults: Mapping[str, Any] = {
        "optimiser_steps": 40,
        "learning_rate": 8e-6,
        "training_images": 8,
        "clip_weight": 3.0,
        "source_weight": 1.0,
    }
    inverts = False
    exact_steps = True

    def __init__(self) -> None:
        self._tuned: MutableMapping[Any, OrderedDict[Any, UNet]] = WeakKeyDictionary()

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """One evaluation a step in either direction, and the training of each pair of texts."""
        run = int(sampling.steps * parameters["strength"])
        up = (run - 1) * (sampling.inversion // sampling.steps) + 1 if run else 0
        steps, pictures = parameters["optimiser_steps"], parameters["training_images"]
        if not run or not steps:
            return Cost(guidance_whole=up, translated=run)
        trained = steps * min(CHAIN, run)
        return Cost(
            guidance_whole=up,
            translated=run,
            trained=pictures * (2 * sampling.steps + up) + trained,
            trained_gradients=trained,
        )

    def translate(self, batch: Batch) -> torch.Tensor:
        """Inverts the guidance images and samples the rows of each pair of texts together."""
        import torch

        from pnp_batch.diffusion.finetuning import last_steps
        from pnp_batch.diffusion.inversion import invert
        from pnp_batch.diffusion.sampling import reconstruct

        guidance, unet = batch.guidance, batch.unet
        x = guidance.x0.clone()
        run = int(batch.schedule.steps * batch.parameters["strength"])
        if run == 0:
            return x.index_select(0, guidance.owner)
        schedule = last_steps(batch.schedule, run)
        start = invert(unet, x, guidance.text, schedule)[0].index_select(0, guidance.owner)
        text = guidance.text.index_select(0, guidance.owner)
        made = torch.empty_like(start)
        pairs = [(row.source_prompt, row.prompt) for row in batch.rows]
        for pair in dict.fromkeys(pairs):
            own = [n for n, other in enumerate(pairs) if other == pair]
            tuned = self._copy(batch, schedule, pair)
            made[own] = reconstruct(tuned, start[own], text[own], schedule)
            if tuned is not unet:
                unet.evaluations += tuned.evaluations
                tuned.evaluations = 0
        return made

    def _copy(self, batch: Batch, schedule: Schedule, texts: tuple[str, str]) -> UNet:
        """The UNet tuned for two texts: of an earlier batch, or now."""
        from pnp_batch.diffusion.finetuning import finetuned, training_pictures

        unet, model, parameters = batch.unet, batch.model, batch.parameters
        if parameters["optimiser_steps"] == 0:
            return unet
        kept = self._tuned.setdefault(unet.module, OrderedDict())
        key = (texts, batch.schedule, tuple(sorted(parameters.items())))
        if key not in kept:
            assert model is not None
            count = parameters["training_images"]
            x0 = training_pictures(unet, model, batch.schedule, texts[0], count)
            told = {**parameters, "chain": CHAIN}
            kept[key] = finetuned(unet, model, schedule, x0, texts, told)
            if len(kept) > KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        kept[key].watch = unet.watch
        return kept[key]
