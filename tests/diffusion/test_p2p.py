"""Prompt-to-Prompt against the reference, row by row of mixed batches, and at its limits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from random import Random

import pytest
import torch

from pnp_batch.diffusion.alignment import Tokenized, carried, common
from pnp_batch.errors import InvalidConfig, InvalidRow
from pnp_batch.methods.base import Asked
from pnp_batch.methods.ddim import DDIM
from pnp_batch.methods.p2p import P2P, factors_of
from pnp_batch.models import StableDiffusion, find
from pnp_batch.steps import Sampling
from tests import reference_control as by_hand
from tests.diffusion.editing import Scene
from tests.diffusion.scene import TOLERANCE, far

INVERSIONS = P2P.inversions
# A word replaced by a longer one, two added, one and a comma taken away; no source prompt.
ROWS = (
    Asked("a blue cat"),
    Asked("a red fat cat, on ice", "ugly"),
    Asked("red cat"),
    Asked("a dog"),
)


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return StableDiffusion(find(str(tiny_model_dir("sd1"))))


@pytest.fixture
def scene(model):
    return Scene(model, 2, ["a red cat", ""], [0, 0, 0, 1], ROWS, [7.5, 4.0, 7.5, 2.0])


def edit(scene: Scene, number: int) -> by_hand.Edit:
    """The reference's, with the scene's parameters."""
    row, given = scene.rows[number], scene.values(P2P())
    lasts = [int(scene.steps * given[name]) for name in ("cross_steps", "self_steps")]
    factors = factors_of(row.parameters.get("reweight", ""))
    prompts = scene.sources[scene.owner[number]], row.prompt.lower()  # as the tokenizer reads it
    return by_hand.prompt_to_prompt(*prompts, factors, *lasts)


def check(scene: Scene, edits=None) -> torch.Tensor:
    result, evaluations = scene.evaluated(P2P())
    most = scene.cost(P2P())
    if scene.given.get("inversion") == "null-text":
        assert evaluations <= most
    else:
        assert evaluations == most
    for number in range(len(scene.rows)):
        own = edits[number] if edits else edit(scene, number)
        assert far(result[[number]], scene.by_hand(number, own)) < TOLERANCE, number
    return result


@pytest.mark.parametrize("inversion", INVERSIONS)
def test_every_row_of_a_mixed_batch_is_the_references(scene, inversion):
    if inversion == "null-text":  # which takes its time by hand
        scene = replace(scene.only(0, 1), sources=scene.sources[:1])
    check(replace(scene, given={"inversion": inversion, "cross_steps": 1.0, "self_steps": 0.5}))


def test_other_layouts_and_predictions(scene, tiny_model_dir):
    other = StableDiffusion(find(str(tiny_model_dir("sd2"))))
    check(replace(scene, model=other, prediction="v_prediction", scale=[2.0] * 4))


def test_rows_of_a_batch_are_what_they_are_alone(scene):
    together, _ = scene.evaluated(P2P())
    for number in range(len(scene.rows)):
        alone, _ = scene.only(number).evaluated(P2P())
        assert far(alone, together[[number]]) < TOLERANCE


@pytest.mark.parametrize(("cross", "own"), [(0, 0), (0, 1), (1, 0), (0.5, 0.99)])
def test_each_window_is_a_share_of_the_first_steps(scene, cross, own):
    one = replace(scene.only(0), given={"cross_steps": cross, "self_steps": own})
    result = check(one)
    plain, _ = one.evaluated(DDIM())
    assert (far(result, plain) < TOLERANCE) == (cross == own == 0)


def test_without_a_source_prompt_only_self_attention_is_taken_over(scene):
    one = scene.only(3)
    results = [
        replace(one, given={"cross_steps": cross, "self_steps": own}).evaluated(P2P())[0]
        for cross, own in ((1, 0), (0, 1), (1, 1))
    ]
    plain, _ = one.evaluated(DDIM())
    assert far(results[0], plain) < TOLERANCE
    assert far(results[1], plain) > 100 * TOLERANCE
    assert far(results[2], results[1]) < TOLERANCE


def test_the_source_itself_as_target_is_the_source(scene):
    one = replace(scene.only(0), rows=[Asked("a red cat")], scale=[7.5])
    one = replace(one, given={"cross_steps": 1.0, "self_steps": 1.0})
    result, _ = one.evaluated(P2P())
    image, empty = one.image(0), [one.text("")] * one.steps
    start = image.trajectory[one.noise.timesteps[0]]
    back = by_hand.sample(one.model.unet, start, image.text, empty, 7.5, one.noise)
    assert far(result, back) < TOLERANCE


def test_large_self_attention_stays_the_targets(scene):
    """With 32 x 32 latents the outermost level has 1024 places, the next 256."""
    given = {"cross_steps": 0.0, "self_steps": 1.0}
    one = replace(scene.only(0), steps=1, side=32, given=given)
    check(one)
    everywhere = edit(one, 0)
    everywhere.target = lambda i, met: (
        lambda own, before: own.p @ own.v if own.cross else met[2 * own.layer].p @ own.v
    )
    result, _ = one.evaluated(P2P())
    assert far(result, one.by_hand(0, everywhere)) > 10 * TOLERANCE


def test_words_are_reweighted_row_by_row(scene):
    plain, _ = scene.evaluated(P2P())
    rows = [*scene.rows[:3], Asked("a Dog")]
    weighted = [
        replace(row, parameters={"reweight": told})
        for row, told in zip(rows, ("Blue=3, cat=0.5", "", "cat=1", "dog=-2"), strict=True)
    ]
    result = check(replace(scene, rows=weighted))
    changed = [far(result[[n]], plain[[n]]) > TOLERANCE for n in range(4)]
    assert changed == [True, False, False, True]


@pytest.mark.parametrize("told", ["red", "red=", "=2", "red=two", "red=inf", "red=2,blue"])
def test_a_reweight_that_cannot_be_read_is_refused(told):
    with pytest.raises(InvalidConfig, match="reweight"):
        P2P().check({"reweight": told})


def test_a_word_that_the_prompt_does_not_have_is_the_rows_fault(scene):
    one = replace(scene.only(0), rows=[Asked("a blue cat", parameters={"reweight": "dog=2"})])
    with pytest.raises(InvalidRow, match="'dog'"):
        one.evaluated(P2P())


@pytest.mark.parametrize(
    ("inversion", "blend", "evaluated"),
    # Cross-attention is taken in 4 of 5 steps; where it is guided, the source has two halves.
    [("ddim", False, 8), ("ddim", True, 10), ("direct", False, 4), ("negative-prompt", True, 5)],
)
def test_a_source_is_evaluated_as_far_as_it_is_read(inversion, blend, evaluated):
    given = {"inversion": inversion, "cross_steps": 0.8, "self_steps": 0.4, "local_blend": blend}
    cost = P2P().cost(Sampling(5), given)
    assert (cost.guidance, cost.translated) == (evaluated, 10)


def test_an_inversion_that_does_not_apply_is_refused():
    with pytest.raises(InvalidConfig, match="edit-friendly"):
        P2P().check({"inversion": "edit-friendly"})


BLENDED = (
    # The words that tell the prompts apart, or those asked for, in both prompts.
    (Asked("a blue cat"), ["red"], ["blue"]),
    (Asked("a red fat cat, on ice", "ugly"), [], ["fat", "ice"]),
    (Asked("red cat", parameters={"subject": "cat"}), ["cat"], ["cat"]),
    (Asked("a dog"), [], ["dog"]),
)


@pytest.mark.parametrize(("inversion", "rows"), [("direct", (0, 1, 2, 3)), ("ddim", (1,))])
def test_outside_the_words_masks_the_source_is_put_back(scene, inversion, rows):
    given = {"local_blend": True, "mask_threshold": 0.6, "inversion": inversion}
    blended = replace(scene, steps=5, rows=[row for row, _, _ in BLENDED], given=given)
    blended = blended.only(*rows)
    edits = []
    for number, (row, old, new) in enumerate(BLENDED[n] for n in rows):
        prompts = blended.sources[blended.owner[number]], row.prompt
        tokens = tuple(
            [p for word, at in by_hand.letters(prompt)[1] if word in words for p in at]
            for prompt, words in zip(prompts, (old, new), strict=True)
        )
        # The first blend is at 0.2 of five steps, the second one.
        edits.append(by_hand.with_blend(edit(blended, number), tokens, 0.6, first=1))
    result = check(blended, edits)
    free, _ = replace(blended, given={"inversion": inversion}).evaluated(P2P())
    assert all(far(a, b) > 10 * TOLERANCE for a, b in zip(result, free, strict=True))


def test_masks_grow(scene):
    given = {"local_blend": True, "mask_threshold": 0.8, "mask_dilation": 1}
    one = replace(scene.only(0), given=given)
    (_, old), (_, new) = by_hand.letters("a red cat"), by_hand.letters("a blue cat")
    tokens = old[1][1], new[1][1]
    check(one, [by_hand.with_blend(edit(one, 0), tokens, 0.8, first=0, grow=1)])


def test_nothing_is_above_the_highest_threshold(scene):
    given = {"local_blend": True, "mask_threshold": 1.0, "inversion": "direct"}
    some = replace(scene.only(0, 1, 3), given=given)
    result, _ = some.evaluated(P2P())
    assert torch.equal(result, scene.latents[0][list(some.owner)])


def test_without_words_to_blend_by_the_whole_picture_is_edited(scene):
    one = replace(scene.only(0), rows=[Asked("cat red a")])
    blended, _ = replace(one, given={"local_blend": True}).evaluated(P2P())
    assert far(blended, one.evaluated(P2P())[0]) < TOLERANCE


# ------------------------------------------------------------------------------- alignment


def longest(x: list[int], y: list[int]) -> int:
    """The length of a longest common subsequence, by trying all."""
    for size in range(min(len(x), len(y)), 0, -1):
        if set(itertools.combinations(x, size)) & set(itertools.combinations(y, size)):
            return size
    return 0


def test_as_many_tokens_as_possible_are_aligned_in_order():
    dice = Random(1)
    for _ in range(50):
        x, y = ([dice.randrange(4) for _ in range(dice.randrange(8))] for _ in range(2))
        pairs = common(x, y)[::-1]
        assert len(pairs) == longest(x, y)
        assert all(x[i] == y[j] for i, j in pairs)
        assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(pairs))
        # Of several alignments it is the authors' code's.
        aligned = by_hand.needleman_wunsch([*map(str, x)], [*map(str, y)])
        assert {j: i for i, j in pairs} == aligned


def test_new_words_have_their_own_maps_and_what_follows_those_of_its_like():
    source = Tokenized([8, 1, 2, 9], [("a", (1,)), ("cat", (2,))])
    target = Tokenized([8, 1, 5, 2, 9], [("a", (1,)), ("fat", (2,)), ("cat", (3,))])
    wanted = torch.zeros(7, 7)
    for i, j in ((0, 0), (1, 1), (2, 3), (3, 4), (5, 5), (6, 6)):
        wanted[i, j] = 1
    assert torch.equal(carried(source, target, 7), wanted)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_replaced_word_shares_what_the_word_before_it_had(swapped):
    short = Tokenized([8, 1, 2, 9], [("a", (1,)), ("cat", (2,))])
    long = Tokenized([8, 1, 5, 6, 9], [("a", (1,)), ("tiger", (2, 3))])
    wanted = torch.zeros(6, 6)
    for i, j in ((0, 0), (1, 1), (5, 5)):
        wanted[i, j] = 1
    if swapped:  # the sum of both tokens' maps; padding that is new is padding
        wanted[2:4, 2] = 1
        wanted[4, 3] = wanted[4, 4] = 1
        assert torch.equal(carried(long, short, 6), wanted)
    else:
        wanted[2, 2:4] = 0.5
        wanted[3, 4] = 1
        assert torch.equal(carried(short, long, 6), wanted)


def test_words_that_change_places_have_the_maps_of_their_new_places():
    before = Tokenized([8, 1, 2, 9], [("cat", (1,)), ("dog", (2,))])
    after = Tokenized([8, 2, 1, 9], [("dog", (1,)), ("cat", (2,))])
    assert torch.equal(carried(before, after, 5), torch.eye(5))


def test_nothing_is_aligned_with_an_empty_prompt():
    assert not carried(Tokenized([8, 9], []), Tokenized([8, 1, 9], [("a", (1,))]), 5).any()
