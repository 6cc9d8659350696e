"""MasaCtrl: the target's queries attend to the source's keys and values.

Cao, Wang, Qi, Shan, Qie, Zheng: MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent
Image Synthesis and Editing, ICCV 2023, arXiv 2304.08465.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pnp_batch.methods import way_back
from pnp_batch.methods.base import Batch, Cost, Method
from pnp_batch.steps import Sampling

if TYPE_CHECKING:
    import torch

    from pnp_batch.diffusion.mutual import Subjects


class MasaCtrl(Method):
    """A source branch and the rows' branches are sampled together, with guidance.

    From step `masactrl_step` and transformer block `masactrl_layer` on, both halves of a row attend
    to the keys and values of their image's halves. With `masactrl_mask` the subject's places attend
    to the source's subject and the others to its background, both told by `mask_threshold` of the
    cross-attention maps that the step has met so far, for the words of `subject`, or else those
    that both prompts have. A prompt without such words is all subject, and a side without places
    to attend to attends to all.

    By `inversion` the source branch follows its own guided sampling, at scale 7.5 whatever the
    rows' is (`ddim`, `null-text`), needs no guidance (`negative-prompt`, where its two halves are
    one), or is the trajectory itself (`direct`, Ju et al., arXiv 2310.01506).

    The authors' code edits real images with an empty source prompt; here a row's own is used, where
    it has one. It also takes the map of one token; here those of all the subject's are summed.
    """

    name = "masactrl"
    summary = "MasaCtrl: keeps what the source looks like, the prompt may change its pose"
    paper = "Cao et al., ICCV 2023, arXiv 2304.08465"
    parameters = (
        *("guidance_scale", "negative_prompt", "inversion", "masactrl_step", "masactrl_layer"),
        *("masactrl_mask", "mask_threshold", "subject"),
    )
    inversions = ("ddim", "negative-prompt", "null-text", "direct")
    exact_steps = True

    def cost(self, sampling: Sampling, parameters: Mapping[str, Any]) -> Cost:
        """Two evaluations a step, and one or two of the source, which `direct` need not follow."""
        window = range(parameters["masactrl_step"], sampling.steps)
        follows = way_back.inversion_of(parameters) != "direct" and bool(window)
        evaluated = sampling.steps if follows else len(window)
        cost = Cost(
            inversion=True,
            guidance_whole=_halves(parameters) * evaluated,
            translated=2 * sampling.steps,
        )
        return way_back.with_way_back(cost, sampling, parameters)

    def translate(self, batch: Batch) -> torch.Tensor:
        """Samples rows from x_T of their images, beside these."""
        from pnp_batch.diffusion.mutual import MutualSelfAttention
        from pnp_batch.diffusion.source_branch import sample_beside

        images = way_back.unconditional(batch)
        prompts, given = way_back.prompts(batch, images), batch.parameters
        source = way_back.source(batch, images if _halves(given) == 2 else None)
        control = MutualSelfAttention(
            source.layout,
            range(given["masactrl_step"], batch.schedule.steps),
            given["masactrl_layer"],
            _subjects(batch) if given["masactrl_mask"] else None,
        )
        return sample_beside(batch.unet, source, prompts, batch.schedule, control)


def _halves(parameters: Mapping[str, Any]) -> int:
    return 1 if way_back.inversion_of(parameters) == "negative-prompt" else 2


def _subjects(batch: Batch) -> Subjects:
    """The tokens of each row's subject in its two prompts."""
    from pnp_batch.diffusion.maps import positions, subject_words
    from pnp_batch.diffusion.mutual import Subjects

    assert batch.model is not None
    found = []
    for row in batch.rows:
        both = (row.source_prompt, row.prompt)
        for prompt, other in (both, both[::-1]):
            words = subject_words(row.parameters.get("subject", ""), prompt, other)
            found.append(positions(words, batch.model.words(prompt)))
    return Subjects(found[::2], found[1::2], batch.parameters["mask_threshold"])
