"""Batches: what a row becomes does not depend on its neighbours or padding, and on its place among
the rows of its image only by rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.sampling import Prompts, generate
from tests import tiny
from tests.diffusion.scene import EMPTY, TOLERANCE, Rows, both_schedules, far, latents, rows, texts


def picked(all_rows: Rows, images: list[int], which: list[int]) -> Rows:
    """A batch of the rows `which`, over the guidance images `images` in this order."""
    return Rows(
        trajectory=all_rows.trajectory[:, images],
        source=all_rows.source[images],
        owner=[images.index(all_rows.owner[row]) for row in which],
        target=all_rows.target[which],
        negative=all_rows.negative[which],
        scale=[all_rows.scale[row] for row in which],
    )


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_images_with_different_numbers_of_prompts_share_a_batch(unets, layout):
    unet = unets[layout]
    schedule, noise = both_schedules(2, "v_prediction")
    batch = rows(2, [0, 1, 1, 2, 2, 2, 0], scale=[7.5, 1.0, 10.0, 0.0, 5.0, 7.5, 3.0])
    batch = replace(batch, source=texts(3, 4))  # each image with its own source prompt
    result = batch.translated(unet, schedule, 2, 1)
    by_hand = batch.by_hand(unet, noise, 1, 0.5)
    for row in range(7):
        assert far(result[[row]], by_hand[[row]]) < TOLERANCE


def test_the_owner_prompts_and_scale_of_every_row_matter(unet):
    schedule, _ = both_schedules(2)
    batch = rows(2, [0, 1])
    result = batch.translated(unet, schedule, 2, 2)
    for other in (
        replace(batch, owner=[1, 0]),
        replace(batch, negative=batch.negative.flip(0)),
        replace(batch, target=batch.target.flip(0)),
        replace(batch, scale=[5.0, 3.0]),
    ):
        changed = other.translated(unet, schedule, 2, 2)
        assert far(changed[:1], result[:1]) > 100 * TOLERANCE
        assert far(changed[1:], result[1:]) > 100 * TOLERANCE


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_neighbours_and_the_image_s_place_change_no_bit_of_a_row(unets, layout):
    unet = unets[layout]
    schedule, _ = both_schedules(2)
    everything = rows(2, [0, 0, 1, 1, 2, 2, 3, 3])
    first = picked(everything, [0, 1], [0, 1, 2, 3]).translated(unet, schedule, 2, 1)
    second = picked(everything, [3, 0], [6, 0, 7, 1]).translated(unet, schedule, 2, 1)
    third = picked(everything, [0, 2], [5, 0, 4, 1]).translated(unet, schedule, 2, 1)
    for other in (second, third):
        assert torch.equal(first[0], other[1])
        assert torch.equal(first[1], other[3])
    swapped = picked(everything, [0, 1], [1, 0, 2, 3]).translated(unet, schedule, 2, 1)
    assert far(first[:2], swapped[:2].flip(0)) < TOLERANCE


def test_padding_rows_and_images_change_no_other_row(unet):
    schedule, noise = both_schedules(2)
    everything = rows(2, [0, 1, 1])
    padded = picked(everything, [1, 0, 0, 0], [1, 2, 2, 2])  # repeats, as a short batch is filled
    result = padded.translated(unet, schedule, 2, 1)
    by_hand = picked(everything, [1], [1, 2]).by_hand(unet, noise, 1, 0.5)
    assert far(result[:2], by_hand) < TOLERANCE
    assert far(result[[1, 1]], result[2:]) < TOLERANCE


def test_the_size_of_a_batch_changes_a_row_by_rounding_only(unet):
    schedule, _ = both_schedules(2)
    everything = rows(2, [0, 0, 1])
    together = everything.translated(unet, schedule, 2, 1)
    for row, image in enumerate(everything.owner):
        alone = picked(everything, [image], [row]).translated(unet, schedule, 2, 1)
        assert far(together[[row]], alone) < TOLERANCE


def test_place_and_neighbours_change_no_bit_of_an_inversion(unet):
    schedule, _ = both_schedules(3)
    images, text = latents(6), EMPTY.expand(4, -1, -1)
    first = invert(unet, images[[0, 1, 2, 3]], text, schedule)
    second = invert(unet, images[[4, 2, 5, 0]], text, schedule)
    assert torch.equal(first[:, 0], second[:, 3])
    assert torch.equal(first[:, 2], second[:, 1])


def test_place_and_neighbours_change_no_bit_of_a_generated_image(unet):
    schedule, _ = both_schedules(2)
    x, text = latents(4), texts(4)

    def generated(order: list[int]) -> torch.Tensor:
        prompts = Prompts(text[order], EMPTY.expand(2, -1, -1), torch.tensor([5.0, 5.0]))
        return generate(unet, x[order], prompts, schedule)[1]

    assert torch.equal(generated([0, 1])[:, 1], generated([1, 3])[:, 0])


def test_latents_need_not_be_square_nor_of_the_models_own_size(unet):
    schedule, noise = both_schedules(2)
    batch = rows(2, [0, 0], side=16)
    batch = replace(batch, trajectory=batch.trajectory[..., :8])
    result = batch.translated(unet, schedule, 2, 1)
    assert far(result, batch.by_hand(unet, noise, 1, 0.5)) < TOLERANCE


def test_nothing_is_computed_with_gradients_or_changes_what_came_in(unet):
    schedule, _ = both_schedules(2)
    batch = rows(2, [0, 0])
    before = [batch.trajectory.clone(), batch.target.clone(), batch.negative.clone()]
    assert not batch.translated(unet, schedule, 2, 2).requires_grad
    for then, now in zip(before, [batch.trajectory, batch.target, batch.negative], strict=True):
        assert torch.equal(then, now)
