"""Plug-and-Play: guidance features and self-attention injected into the translation.

Tumanyan, Geyer, Bagon, Dekel: Plug-and-Play Diffusion Features for Text-Driven Image-to-Image
Translation, CVPR 2023, arXiv 2211.12572, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.methods import way_back
from pnp_batch.methods.base import Batch, Cost, Method
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch


class PlugAndPlay(Method):
    """Features of decoder layer 4 in the first `pnp_f_t` of the steps, self-attention of layers
    4 to 11 in the first `pnp_attn_t`.

    The guidance branch is the trajectory itself at every step, so that `inversion` `direct` is
    `ddim`. `negative-prompt` and `null-text` stand in the empty prompt's place of rows that have no
    negative prompt of their own; null-text is found at guidance 7.5, as published.
    """

    name = "pnp"
    summary = "Plug-and-Play: keeps structure through injected features and self-attention"
    paper = "Tumanyan et al., CVPR 2023, arXiv 2211.12572"
    parameters = ("guidance_scale", "negative_prompt", "pnp_f_t", "pnp_attn_t", "inversion")
    inversions = ("ddim", "negative-prompt", "null-text", "direct")

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """The guidance branch runs as far and as long as something is injected from it."""
        features, attention = _injected_steps(sampling.steps, parameters)
        whole, shallow = sampling.evaluations(sampling.steps)
        attended, attended_shallow = sampling.evaluations(attention)
        featured, _ = sampling.evaluations(features)
        cost = Cost(
            inversion=True,
            guidance_to_attention=attended,
            guidance_to_feature=max(0, featured - attended),
            guidance_shallow=attended_shallow,
            translated=2 * whole,
            translated_shallow=2 * shallow,
            injected_features=2 * featured,
            injected_attention=2 * attended,
            injected_shallow=2 * attended_shallow,
        )
        return way_back.with_way_back(cost, sampling, parameters)

    def translate(self, batch: Batch) -> torch.Tensor:
        """Translates from x_T of each row's guidance image."""
        from pnp_batch.diffusion.sampling import translate

        features, attention = _injected_steps(batch.schedule.steps, batch.parameters)
        return translate(
            batch.unet,
            batch.guidance,
            way_back.prompts(batch),
            batch.schedule,
            feature_steps=features,
            attention_steps=attention,
        )


def _injected_steps(steps: int, parameters: Mapping[str, Any]) -> tuple[int, int]:
    return int(steps * parameters["pnp_f_t"]), int(steps * parameters["pnp_attn_t"])
