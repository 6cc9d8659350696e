"""Plug-and-Play in a part of the picture: the subject's structure kept, its background free.

The injection of Tumanyan et al. (CVPR 2023, arXiv 2211.12572) with masks that are read from
cross-attention as MasaCtrl reads them (Cao et al., ICCV 2023, arXiv 2304.08465, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pnp_batch.methods import way_back
from pnp_batch.methods.base import Asked, Batch, Cost
from pnp_batch.methods.pnp import PlugAndPlay, injected_steps, injecting
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.masking import Masking


class MaskedPlugAndPlay(PlugAndPlay):
    """Plug-and-Play inside the subject's mask, outside of it, or in both apart from each other.

    In each step that injects, two masks are read from 16 x 16 cross-attention maps (the nearest
    there are), averaged over heads and layers: the maps of the subject's tokens are summed,
    normalised to 0..1 and thresholded.

    - The source mask: from the guidance image's latent of that very step with its source prompt or,
      if that is empty, the row's target prompt.
    - The target mask: from the translation's own target branch, the mean of its maps over the steps
      before; in the first step it is the source mask.

    `subject` names the words. By default they are those that both prompts have in common or, where
    there are none, all words of each prompt; articles and prepositions do not count. Where a prompt
    has none of the words, all of the picture is the subject.

    `mask_mode` says where features, queries and keys are injected, in both branches:

    - `foreground`: where the subject is in either mask. The union, because injected structure also
      holds back a subject that grows beyond its outline. The background is the translation's own.
    - `background`: everywhere else, so that the subject is free, also to leave its old place.
    - `both`: everywhere, but the guidance image's queries inside the source mask attend to the keys
      inside it alone, those outside to the keys outside, so that their structures do not mix.

    Where a mask is between 0 and 1 (`mask_softness`, and edges at other resolutions), features and
    attention outputs are the mean of the two, so weighted. A mask of all ones in `foreground` is
    `pnp`, one of zeros is sampling without injection.

    Differences to MasaCtrl: what is taken from the source's attention are queries and keys, as in
    Plug-and-Play, not keys and values; so in `both` the source mask parts the queries, too. It is
    read in the inversion's own latents at each step, not in a sampling beside, by one more
    evaluation of each row, up to the last map: what is injected is exactly what `pnp` injects.
    """

    name = "pnp-mask"
    summary = "Plug-and-Play inside, outside, or apart in a mask read from cross-attention"
    paper = "Tumanyan et al., CVPR 2023, arXiv 2211.12572; masks: Cao et al., arXiv 2304.08465"
    parameters = (
        *PlugAndPlay.parameters,
        *("subject", "mask_mode", "mask_threshold", "mask_dilation", "mask_softness"),
    )
    exact_steps = True

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """As `pnp` with whole steps, and each row's maps; what is blended is computed, too."""
        steps = sampling.steps
        plain = super().cost(Sampling(steps, sampling.inversion_steps), parameters)
        apart = parameters["mask_mode"] == "both"
        return replace(
            plain,
            mapped=max(injected_steps(steps, parameters)),
            injected_features=plain.injected_features if apart else 0,
            injected_attention=0,
            blended_attention=plain.injected_attention,
        )

    def translate(self, batch: Batch) -> torch.Tensor:
        """Translates from x_T of each row's guidance image; shows the masks' means over steps."""
        from pnp_batch.diffusion.masking import translate_masked

        made = translate_masked(
            batch.unet,
            batch.guidance,
            way_back.prompts(batch),
            batch.schedule,
            injecting(batch),
            _masking(batch),
        )
        for name, masks in (("source mask", made.source), ("target mask", made.target)):
            if len(masks):
                levels = (masks.mean(dim=0)[:, 0] * 255).round().byte()
                for row, picture in enumerate(levels):
                    batch.keep(row, name, picture)
        return made.latents


def _masking(batch: Batch) -> Masking:
    """How the subjects of a batch's rows are found."""
    import torch

    from pnp_batch.diffusion.maps import positions, subject_words
    from pnp_batch.diffusion.masking import Masking

    model = batch.model
    assert model is not None

    def tokens(row: Asked, text: str, other: str) -> tuple[int, ...]:
        words = subject_words(row.parameters["subject"], text, other)
        return positions(words, model.words(text))

    read = [(row, row.source_prompt or row.prompt) for row in batch.rows]
    return Masking(
        mode=batch.parameters["mask_mode"],
        text=torch.stack([model.text(text) for _, text in read]),
        source=[tokens(row, text, row.prompt) for row, text in read],
        target=[tokens(row, row.prompt, text) for row, text in read],
        threshold=batch.parameters["mask_threshold"],
        dilation=batch.parameters["mask_dilation"],
        softness=batch.parameters["mask_softness"],
    )
