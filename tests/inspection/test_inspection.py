"""The inspection as a whole, from Python and from the command line."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pnp_batch import Translator
from pnp_batch.diffusion.inversion import invert
from pnp_batch.diffusion.schedule import make_schedule
from pnp_batch.diffusion.unet import UNet
from pnp_batch.errors import InvalidConfig
from pnp_batch.inspection import Wanted, inspect
from pnp_batch.models import StableDiffusion
from pnp_batch.steps import Sampling
from pnp_batch.world import draw, random_spec

STEPS = Sampling(4)


def test_features_are_components_at_the_images_own_latents(
    model: StableDiffusion, pictures: list[Image.Image]
) -> None:
    """NumPy's SVD of what the test itself captures at x_t of the test's own inversion."""
    wanted = Wanted(layers=(7,), times=(0.5,), sampling=STEPS, resolution=64)
    (found,) = inspect(model, pictures, wanted).features
    unet, empty = UNet(model.unet), model.text("")[None]
    schedule = make_schedule(model.files.configs["scheduler"], STEPS)
    rows = []
    for picture in pictures:
        x = invert(unet, model.encode(picture)[None], empty, schedule)[2]
        kept: list[torch.Tensor] = []
        hook = (
            model.unet.up_blocks[2]
            .resnets[1]
            .conv2.register_forward_hook(
                lambda module, args, output, kept=kept: kept.append(output)
            )
        )
        with torch.no_grad():
            unet(x, schedule.timesteps[2], empty)
        hook.remove()
        rows.append(kept[0][0].flatten(1).T.double().numpy())
    centred = np.concatenate(rows) - np.concatenate(rows).mean(0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.explained, (singular**2 / (singular**2).sum())[:3], rtol=1e-3)
    assert (found.timestep, found.channels) == (schedule.timesteps[2], centred.shape[1])
    colours = found.colours.reshape(-1, 3).numpy()
    for k in range(3):
        inner = np.abs(colours[:, k] - 0.5) < 0.49  # the extremes are cut
        told = np.corrcoef(centred[inner] @ right[k], colours[inner, k])[0, 1]
        assert told * np.sign(right[k][np.abs(right[k]).argmax()]) > 0.999


def test_images_are_fitted_together_in_any_order(
    first_model: StableDiffusion, pictures: list[Image.Image]
) -> None:
    wanted = Wanted(
        layers=(4, 7), times=(0.5,), prompt="a cat", sampling=Sampling(1), resolution=64
    )
    first, second = (inspect(first_model, some, wanted) for some in (pictures, pictures[::-1]))
    alone = inspect(first_model, pictures[:1], wanted)
    for one, other, single in zip(first.features, second.features, alone.features, strict=True):
        torch.testing.assert_close(one.colours, other.colours.flip(0), atol=1e-4, rtol=0)
        assert (one.colours[0] - single.colours[0]).abs().max() > 0.05
    for one, single in zip(first.self_attention[0], alone.self_attention[0], strict=True):
        torch.testing.assert_close(one.colours, single.colours)
    assert [w.heat.tolist() for w in first.words[0]] == [w.heat.tolist() for w in alone.words[0]]


def test_the_model_is_left_as_it_was(
    first_model: StableDiffusion, pictures: list[Image.Image]
) -> None:
    def translated() -> bytes:
        (made,) = Translator(first_model).translate(pictures[:1], ["a dog"], steps=1)
        return made.tobytes()  # type: ignore[union-attr]

    before = translated()
    inspect(first_model, pictures[:1], Wanted(prompt="a cat", sampling=Sampling(1)))
    assert translated() == before


def test_words_have_the_tokens_between_their_ends(model: StableDiffusion) -> None:
    tokens = model._tokenizer.model_max_length
    assert model.words("a red-ish Cat's, 鳥!") == [  # a token a byte, after the first
        ("a", (1,)),
        ("red-ish", (2, 3, 4, 5, 6, 7, 8)),
        ("Cat's", (9, 10, 11, 12, 13)),
        ("鳥", (15, 16, 17)),
    ]
    assert model.words("  ,. ") == []
    found = model.words("word " * tokens)
    assert found[-1][1][-1] == tokens - 2  # the last one ends the text


@pytest.mark.parametrize(
    "change", [{"layers": (12,)}, {"layers": ()}, {"times": (1.5,)}, {"times": (-0.1, 0.5)}]
)
def test_what_no_model_has_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(change))):
        Wanted(**change)


def test_the_deep_features_of_the_embedded_model_tell_object_from_scene() -> None:
    """Of drawn pictures: where they show an object, and where they do not, is known exactly."""
    specs = [
        random_spec(Random(n), object="house", rendition=rendition)
        for n, rendition in enumerate(("flat", "oil", "pixel"))
    ]
    drawn = [draw(spec) for spec in specs]
    wanted = Wanted(layers=(7,), times=(0.5,), sampling=Sampling(5))
    found = inspect(Translator.load("demo").model, [d.image for d in drawn], wanted)
    (features,) = found.features
    shares = [
        torch.from_numpy(d.mask).float().unflatten(0, (8, 8)).unflatten(2, (8, 8)).mean((1, 3))
        for d in drawn
    ]
    inside = torch.stack(shares).flatten() > 0.5
    components = features.colours.flatten(0, 2)
    told = [abs(float(np.corrcoef(c, inside)[0, 1])) for c in components.T.numpy()]
    assert max(told) > 0.45, told
