"""Prompt-to-Prompt: attention maps of the source's sampling replace or refine the target's.

Hertz, Mokady, Tenenbaum, Aberman, Pritch, Cohen-Or: Prompt-to-Prompt Image Editing with Cross
Attention Control, ICLR 2023, arXiv 2208.01626.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.errors import InvalidConfig, InvalidRow
from pnp_batch.methods import way_back
from pnp_batch.methods.base import Asked, Batch, Cost, Method
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.alignment import Tokenized
    from pnp_batch.diffusion.prompt_to_prompt import Blend, PromptToPrompt, Words
    from pnp_batch.diffusion.source_branch import Layout
    from pnp_batch.models import StableDiffusion


class P2P(Method):
    """A source branch and the rows' branches are sampled together, with guidance.

    In the first `cross_steps` of the steps a row's target half has the cross-attention maps of its
    image's: each word those of the word in its place if the two prompts have equally many words,
    else equal tokens those of their like and new ones their own; times the factors of `reweight`.
    In the first `self_steps` it has the image's self-attention maps, where these have at most 16 x
    16 places: on a model whose latents are that small, in all layers. `local_blend` puts the
    source back outside the mask of the edited words: those of `subject`, or else those that only
    one of the prompts has.

    The source branch runs as long as something is taken from it. By `inversion` it follows its own
    guided sampling, at scale 7.5 whatever the rows' is (`ddim`, `null-text`), needs no guidance
    (`negative-prompt`), or is the trajectory itself (`direct`, Ju et al., arXiv 2310.01506).

    A row without a source prompt has no words to align: only self-attention is taken over.

    Differences to the authors' code: a word of other length does not shift the tokens behind it;
    masks read the target's own maps, as algorithm 1 has it, not the edited ones, and are scaled by
    minimum and maximum; `cross_steps` counts steps, not steps + 1. Their thresholds are 0.3 with
    masks grown by a cell: `mask_threshold=0.3, mask_dilation=1`.
    """

    name = "p2p"
    summary = "Prompt-to-Prompt: keeps the source's attention maps"
    paper = "Hertz et al., ICLR 2023, arXiv 2208.01626"
    wants = ("source_prompt",)
    parameters = (
        *("guidance_scale", "negative_prompt", "inversion", "cross_steps", "self_steps"),
        *("reweight", "local_blend"),
        *("subject", "mask_threshold", "mask_dilation", "mask_softness"),
    )
    inversions = ("ddim", "negative-prompt", "null-text", "direct")
    exact_steps = True

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Refuses a `reweight` that is no list of words and factors, too."""
        super().check(parameters)
        factors_of(parameters.get("reweight", ""))

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """Two evaluations a step, and one or two of the source as long as it is needed."""
        needed = max(_first_steps(sampling.steps, parameters))
        if parameters["local_blend"]:
            needed = sampling.steps
        cost = Cost(
            inversion=True,
            guidance_whole=_halves(parameters) * needed,
            translated=2 * sampling.steps,
        )
        return way_back.with_way_back(cost, sampling, parameters)

    def translate(self, batch: Batch) -> torch.Tensor:
        """Samples rows from x_T of their images, beside these.

        Raises:
            InvalidRow: a row's `reweight` names a word that its prompt does not have.
        """
        from pnp_batch.diffusion.source_branch import sample_beside

        images = way_back.unconditional(batch)
        prompts = way_back.prompts(batch, images)
        source = way_back.source(batch, images if _halves(batch.parameters) == 2 else None)
        control = _control(batch, source.layout)
        return sample_beside(batch.unet, source, prompts, batch.schedule, control)


def factors_of(reweight: str) -> dict[str, float]:
    """The words of `reweight`, in small letters, with their factors.

    Raises:
        InvalidConfig: it is no list of WORD=FACTOR.
    """
    found = {}
    for part in filter(None, (part.strip() for part in reweight.split(","))):
        word, _, factor = (piece.strip() for piece in part.partition("="))
        try:
            found[word.lower()] = float(factor)
        except ValueError:
            found[word.lower()] = math.nan
        if not word or not math.isfinite(found[word.lower()]):
            raise InvalidConfig(
                f"reweight: {part!r} is no WORD=FACTOR", "write it like red=2,fluffy=0.5"
            )
    return found


def _halves(parameters: Mapping[str, Any]) -> int:
    """Evaluations of the source in a step: only its conditional half is read."""
    return 1 if way_back.inversion_of(parameters) in ("negative-prompt", "direct") else 2


def _first_steps(steps: int, parameters: Mapping[str, Any]) -> tuple[int, int]:
    return int(steps * parameters["cross_steps"]), int(steps * parameters["self_steps"])


def _control(batch: Batch, layout: Layout) -> PromptToPrompt:
    from pnp_batch.diffusion.prompt_to_prompt import PromptToPrompt

    steps = batch.schedule.steps
    cross_steps, self_steps = _first_steps(steps, batch.parameters)
    return PromptToPrompt(
        layout,
        _words(batch),
        steps,
        cross_steps=cross_steps,
        self_steps=self_steps,
        blend=_blend(batch) if batch.parameters["local_blend"] else None,
    )


def _words(batch: Batch) -> Words:
    """How the maps of each row's words are edited."""
    import torch

    from pnp_batch.diffusion.alignment import carried
    from pnp_batch.diffusion.prompt_to_prompt import Words

    length, device = batch.prompts.target.shape[1], batch.prompts.target.device
    model, rows = _model(batch), batch.rows
    read = [(_tokenized(model, r.source_prompt), _tokenized(model, r.prompt)) for r in rows]
    matrices = [carried(source, target, length) for source, target in read]
    factors = torch.ones(len(rows), length)
    for row, (_, target), own in zip(rows, read, factors, strict=True):
        for word, factor in factors_of(row.parameters.get("reweight", "")).items():
            tokens = [p for spelt, at in target.words if spelt.lower() == word for p in at]
            if not tokens:
                raise InvalidRow(f"reweight: the prompt {row.prompt!r} has no word {word!r}")
            own[tokens] = factor
    return Words(torch.stack(matrices).to(device), factors.to(device))


def _blend(batch: Batch) -> Blend:
    """Local blending by the words of each row's subject, or those that tell its prompts apart."""
    from pnp_batch.diffusion.maps import positions
    from pnp_batch.diffusion.prompt_to_prompt import Blend

    model, found = _model(batch), []
    for row in batch.rows:
        source, target = model.words(row.source_prompt), model.words(row.prompt)
        words = _subject(row, {w.lower() for w, _ in source}, {w.lower() for w, _ in target})
        found.append((positions(words, source), positions(words, target)))
    given = batch.parameters
    return Blend(
        [source for source, _ in found],
        [target for _, target in found],
        given["mask_threshold"],
        given["mask_dilation"],
        given["mask_softness"],
    )


def _subject(row: Asked, source: set[str], target: set[str]) -> frozenset[str]:
    from pnp_batch.diffusion.maps import EMPTY_WORDS, subject_words

    if asked := row.parameters.get("subject", ""):
        return subject_words(asked, row.prompt, row.source_prompt)
    return frozenset((source ^ target) - EMPTY_WORDS)


def _tokenized(model: StableDiffusion, prompt: str) -> Tokenized:
    from pnp_batch.diffusion.alignment import Tokenized

    return Tokenized(model.tokens(prompt), model.words(prompt))


def _model(batch: Batch) -> StableDiffusion:
    assert batch.model is not None
    return batch.model
