"""Plug-and-Play: guidance features and self-attention injected into the translation.

Tumanyan, Geyer, Bagon, Dekel: Plug-and-Play Diffusion Features for Text-Driven Image-to-Image
Translation, CVPR 2023, arXiv 2211.12572, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch import layers
from pnp_batch.methods import way_back
from pnp_batch.methods.base import Batch, Cost, Method
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.sampling import Injecting


class PlugAndPlay(Method):
    """Features of decoder layer 4 in the first `pnp_f_t` of the steps, self-attention of layers
    4 to 11 in the first `pnp_attn_t`.

    The paper's ablations are parameters: a share of 0 leaves one of the two out, `pnp_f_layers` and
    `pnp_attn_layers` name other decoder layers.

    The guidance branch is the trajectory itself at every step, so that `inversion` `direct` is
    `ddim`. `negative-prompt` and `null-text` stand in the empty prompt's place of rows that have no
    negative prompt of their own; null-text is found at guidance 7.5, as published.
    """

    name = "pnp"
    summary = "Plug-and-Play: keeps structure through injected features and self-attention"
    paper = "Tumanyan et al., CVPR 2023, arXiv 2211.12572"
    parameters: tuple[str, ...] = (
        *("guidance_scale", "negative_prompt"),
        *("pnp_f_t", "pnp_attn_t", "pnp_f_layers", "pnp_attn_layers", "inversion"),
    )
    inversions: tuple[str, ...] = ("ddim", "negative-prompt", "null-text", "direct")

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Refuses also layers that are none."""
        super().check(parameters)
        _layers(parameters)

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """The guidance branch runs as far and as long as something is injected from it."""
        feature_layers, attention_layers = _layers(parameters)
        features, attention = injected_steps(sampling.steps, parameters)
        whole, shallow = sampling.evaluations(sampling.steps)
        featured, featured_shallow = sampling.evaluations(features)
        attended, attended_shallow = sampling.evaluations(attention)
        # A shallow evaluation has the last layer alone.
        featured_shallow *= layers.LAST in feature_layers
        attended_shallow *= layers.LAST in attention_layers
        # Where both are injected, the guidance branch ends at the site that is met last.
        attention_last = max(attention_layers) >= max(feature_layers)
        cost = Cost(
            inversion=True,
            feature_layers=feature_layers,
            attention_layers=attention_layers,
            guidance_to_attention=attended if attention_last else max(0, attended - featured),
            guidance_to_feature=max(0, featured - attended) if attention_last else featured,
            guidance_shallow=attended_shallow,
            guidance_shallow_to_feature=max(0, featured_shallow - attended_shallow),
            translated=2 * whole,
            translated_shallow=2 * shallow,
            injected_features=2 * featured,
            injected_attention=2 * attended,
            injected_shallow=2 * attended_shallow,
            injected_shallow_features=2 * featured_shallow,
        )
        return way_back.with_way_back(cost, sampling, parameters)

    def translate(self, batch: Batch) -> torch.Tensor:
        """Translates from x_T of each row's guidance image."""
        from pnp_batch.diffusion.sampling import translate

        return translate(
            batch.unet, batch.guidance, way_back.prompts(batch), batch.schedule, injecting(batch)
        )


def injecting(batch: Batch) -> Injecting:
    """What is injected into the rows of a batch, where, and for how long."""
    from pnp_batch.diffusion.sampling import Injecting
    from pnp_batch.diffusion.sites import find_sites

    sites = find_sites(batch.unet.module, *_layers(batch.parameters))
    return Injecting(*injected_steps(batch.schedule.steps, batch.parameters), sites)


def injected_steps(steps: int, parameters: Mapping[str, Any]) -> tuple[int, int]:
    """In how many of the first steps features and attention are injected."""
    return int(steps * parameters["pnp_f_t"]), int(steps * parameters["pnp_attn_t"])


def _layers(parameters: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The decoder layers whose features and whose attention are injected."""
    features, attention = "pnp_f_layers", "pnp_attn_layers"
    return (
        layers.parsed(features, parameters[features]),
        layers.parsed(attention, parameters[attention], layers.ATTENDING),
    )
