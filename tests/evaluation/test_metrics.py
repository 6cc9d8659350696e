"""Each score against a computation that shares nothing with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, ViTModel

from pnp_batch.errors import InvalidModel
from pnp_batch.evaluation import Judge, Named, NotScored, measures
from pnp_batch.evaluation.background import Background
from pnp_batch.evaluation.clip import Clip
from pnp_batch.evaluation.drawn import Drawn
from pnp_batch.evaluation.perceptual import Perceptual
from pnp_batch.evaluation.pixels import Pixels
from pnp_batch.evaluation.structure import Structure
from pnp_batch.models.networks import find, find_weights
from pnp_batch.world import benchmark
from pnp_batch.world.case import as_json
from tests.evaluation.conftest import FIRES, MEAN, STD, pair, picture

GONE = NotScored("the guidance image is gone")
MASK = np.zeros((32, 32), bool)
MASK[4:20, 10:30] = True


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float64) / 255


# --- CLIP


@pytest.fixture(scope="module")
def embedded(clip):
    """Embeddings by transformers' own preparation and methods; two functions."""
    model, tokenizer = CLIPModel.from_pretrained(clip), AutoTokenizer.from_pretrained(clip)
    processor = CLIPImageProcessor.from_pretrained(clip)

    def of_image(image):
        inputs = processor(image, return_tensors="pt")
        with torch.no_grad():
            out = model.vision_model(**inputs).pooler_output @ model.visual_projection.weight.T
        return out[0].double().numpy()

    def of_text(text):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            out = model.text_model(**inputs).pooler_output @ model.text_projection.weight.T
        return out[0].double().numpy()

    return of_image, of_text


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_clip_scores_are_cosines_of_embeddings(clip, embedded):
    of_image, of_text = embedded
    one = pair(output=picture(1, 48), source=picture(2, 48))
    (found,) = Clip(find(str(clip))).score([one])
    image, source = unit(of_image(one.output)), unit(of_image(one.source))
    text, before = unit(of_text(one.prompt)), unit(of_text(one.source_prompt))
    assert found["clip_similarity"] == pytest.approx(image @ text, abs=2e-3)
    assert found["clip_source_similarity"] == pytest.approx(image @ before, abs=2e-3)
    direction = unit(image - source) @ unit(text - before)
    assert found["clip_direction"] == pytest.approx(direction, abs=2e-2)
    assert len({round(value, 2) for value in found.values()}) == 3


def test_clip_scores_of_a_pair_do_not_depend_on_its_neighbours(clip):
    scorer = Clip(find(str(clip)))
    others = [pair(output=picture(n), source=GONE if n == 4 else picture(n + 9)) for n in (3, 4, 5)]
    together = scorer.score(others)
    for one, found in zip(others, together, strict=True):
        (alone,) = scorer.score([one])
        assert found.keys() == alone.keys()
        for name in found:
            none = isinstance(alone[name], NotScored)
            assert found[name] == (alone[name] if none else pytest.approx(alone[name], abs=1e-5))


def test_clip_says_why_it_has_no_score(clip):
    scorer = Clip(find(str(clip)))
    (found,) = scorer.score([pair(source_prompt="")])
    assert isinstance(found["clip_similarity"], float)
    assert "source_prompt" in found["clip_source_similarity"].reason
    assert "source_prompt" in found["clip_direction"].reason
    (found,) = scorer.score([pair(source=GONE)])
    assert found["clip_direction"] == GONE
    (found,) = scorer.score([pair(source=picture(1))])
    assert "the same" in found["clip_direction"].reason
    (long,) = scorer.score([pair(prompt="word " * 500)])
    assert isinstance(long["clip_similarity"], float)


# --- structure distance


def similarities(model, normalised):
    """Cosines of the last layer's keys, computed from that layer's input, token by token."""
    met = []
    block = [module for module in model.modules() if hasattr(module, "layernorm_before")][-1]
    block.layernorm_before.register_forward_pre_hook(lambda module, args: met.append(args[0]))
    with torch.no_grad():
        model(pixel_values=normalised)
        hidden = met[0]
        projection = [m for n, m in block.named_modules() if n.endswith(("key", "k_proj"))][-1]
        keys = (block.layernorm_before(hidden) @ projection.weight.T + projection.bias)[0]
    keys = keys.double().numpy()
    return np.array([[unit(a) @ unit(b) for b in keys] for a in keys])


def bilinear(image: Image.Image, side: int) -> np.ndarray:
    """Resized without antialiasing, pixel centres at halves."""
    array = values(image)

    def at(position):
        near = (position + 0.5) * len(array) / side - 0.5
        low = int(np.clip(np.floor(near), 0, len(array) - 1))
        high = min(low + 1, len(array) - 1)
        return low, high, max(near - low, 0.0)

    out = np.zeros((side, side, 3))
    for y in range(side):
        y0, y1, dy = at(y)
        for x in range(side):
            x0, x1, dx = at(x)
            top = array[y0, x0] * (1 - dx) + array[y0, x1] * dx
            bottom = array[y1, x0] * (1 - dx) + array[y1, x1] * dx
            out[y, x] = top * (1 - dy) + bottom * dy
    return out


def test_structure_distance_is_the_mean_squared_difference_of_key_similarities(vit):
    model = ViTModel.from_pretrained(vit, add_pooling_layer=False)
    one = pair(output=picture(1, 64), source=picture(2, 64))
    found = []
    for image in (one.output, one.source):
        normalised = (bilinear(image, 24) - MEAN) / STD
        tensor = torch.from_numpy(normalised).float().permute(2, 0, 1)[None]
        found.append(similarities(model, tensor))
    expected = ((found[0] - found[1]) ** 2).mean()
    (scores,) = Structure(find(str(vit))).score([one])
    assert found[0].shape == (10, 10)  # nine patches and the class token
    assert expected > 1e-4
    assert scores["structure_distance"] == pytest.approx(expected, rel=1e-3)


def test_networks_of_another_kind_are_refused(clip, vit):
    with pytest.raises(InvalidModel, match="no CLIPModel"):
        Clip(find(str(vit)))


def test_structure_distance_of_a_picture_and_itself_is_zero_and_without_one_none(vit):
    scorer = Structure(find(str(vit)))
    same, none = scorer.score([pair(source=picture(1)), pair(source=GONE)])
    assert same["structure_distance"] == pytest.approx(0, abs=1e-9)
    assert none["structure_distance"] == GONE


def test_a_clip_serves_as_the_vit_and_a_model_without_attention_is_refused(clip, tmp_path):
    (found,) = Structure(find(str(clip))).score([pair()])
    assert found["structure_distance"] > 0
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidModel, match=r"no config\.json with weights"):
        find(str(tmp_path))


# --- LPIPS


def lpips(state, weights, one, other):
    """LPIPS with SqueezeNet, written out."""

    def conv(x, name, **more):
        weight, bias = state[f"features.{name}.weight"], state[f"features.{name}.bias"]
        return F.relu(F.conv2d(x, weight, bias, **more))

    def fire(x, number):
        x = conv(x, f"{number}.squeeze")
        wide = conv(x, f"{number}.expand1x1"), conv(x, f"{number}.expand3x3", padding=1)
        return torch.cat(wide, 1)

    def features(image):
        x = torch.from_numpy(values(image) * 2 - 1).float().permute(2, 0, 1)[None]
        shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
        x = conv((x - shift) / scale, "0", stride=2)
        taps = [x]
        for number in FIRES:
            if number in (3, 6, 9):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = fire(x, number)
            if number in (4, 7, 9, 10, 11, 12):
                taps.append(x)
        return taps

    total = 0.0
    for tap, both in enumerate(zip(features(one), features(other), strict=True)):
        a, b = (np.asarray(own[0], np.float64) for own in both)
        a, b = (own / np.sqrt((own**2).sum(0) + 1e-8) for own in (a, b))
        weight = weights[f"lin{tap}.model.1.weight"].numpy().reshape(-1, 1, 1)
        total += ((a - b) ** 2 * weight).sum(0).mean()
    return total


@pytest.fixture(scope="module")
def published():
    """LPIPS's own linear weights."""
    folder = Path(torchmetrics.__file__).parent / "functional/image/lpips_models"
    return torch.load(folder / "squeeze.pth", map_location="cpu", weights_only=True)


def test_lpips_is_what_its_paper_computes(squeezenet, published):
    state = torch.load(squeezenet, weights_only=True)
    one = pair(output=picture(1, 64), source=picture(2, 64))
    expected = lpips(state, published, one.output, one.source)
    scorer = Perceptual(find_weights(str(squeezenet)))
    found, same, none = scorer.score([one, pair(source=picture(1)), pair(source=GONE)])
    assert expected > 0.01
    assert found["lpips"] == pytest.approx(expected, rel=1e-4)
    assert same["lpips"] == 0
    assert none["lpips"] == GONE


def test_lpips_refuses_a_file_that_holds_something_else(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    with pytest.raises(InvalidModel, match="not the weights of"):
        Perceptual(find_weights(str(tmp_path / "weights.pth")))
    with pytest.raises(InvalidModel, match="no such file"):
        find_weights(str(tmp_path / "none.pth"))


# --- pixels and background


def psnr(a, b):
    return 10 * np.log10(1 / ((a - b) ** 2).mean())


def ssim(a, b):
    """Wang et al. 2004: an 11 x 11 Gaussian window of sigma 1.5 around every pixel."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window)[..., None] / window.sum() ** 2
    side = len(a)
    a, b = (np.pad(image, ((5, 5), (5, 5), (0, 0)), mode="reflect") for image in (a, b))
    found = []
    for y in range(side):
        for x in range(side):
            p, q = (image[y : y + 11, x : x + 11] for image in (a, b))
            mp, mq = (window * p).sum((0, 1)), (window * q).sum((0, 1))
            vp, vq = ((window * c * c).sum((0, 1)) - m * m for c, m in ((p, mp), (q, mq)))
            cov = (window * p * q).sum((0, 1)) - mp * mq
            one, two = 0.01**2, 0.03**2
            upper = (2 * mp * mq + one) * (2 * cov + two)
            found.append(upper / ((mp**2 + mq**2 + one) * (vp + vq + two)))
    return np.mean(found)


def test_pixel_scores(clip):
    one = pair()
    (found,) = Pixels().score([one])
    a, b = values(one.output), values(one.source)
    assert found["psnr"] == pytest.approx(psnr(a, b), rel=1e-5)
    assert found["ssim"] == pytest.approx(ssim(a, b), rel=1e-5)
    edges = [np.hypot(*np.gradient(image.mean(-1))) for image in (a, b)]
    blurred = []
    for edge in edges:
        wide = np.pad(edge, 1, mode="edge")
        kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
        windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3))
        blurred.append((windows * kernel).sum((2, 3)).ravel())
    assert found["edge_correlation"] == pytest.approx(np.corrcoef(blurred)[0, 1], abs=1e-6)


def test_equal_pictures_have_no_psnr_and_say_why():
    (found,) = Pixels().score([pair(source=picture(1))])
    assert "infinite" in found["psnr"].reason
    assert found["ssim"] == pytest.approx(1, abs=1e-9)
    (none,) = Pixels().score([pair(source=GONE)])
    assert set(none.values()) == {GONE}


def test_background_scores_compare_what_is_left_outside_the_mask(squeezenet, published):
    one = pair(mask=MASK)
    (found,) = Background(Perceptual(find_weights(str(squeezenet)))).score([one])
    a, b = (values(image) * ~MASK[..., None] for image in (one.output, one.source))
    assert found["background_psnr"] == pytest.approx(psnr(a, b), rel=1e-5)
    assert found["background_ssim"] == pytest.approx(ssim(a, b), rel=1e-5)
    assert found["background_mse"] == pytest.approx(((a - b) ** 2).mean(), rel=1e-5)
    state = torch.load(squeezenet, weights_only=True)
    black = [np.where(MASK[..., None], 0, np.asarray(i)) for i in (one.output, one.source)]
    expected = lpips(state, published, *(Image.fromarray(image) for image in black))
    assert found["background_lpips"] == pytest.approx(expected, rel=1e-4)


def test_background_scores_say_why_they_are_none():
    scorer = Background(NotScored("no network"))
    bare, sourceless, whole, some = scorer.score(
        [
            pair(),
            pair(mask=MASK, source=GONE),
            pair(mask=np.ones((32, 32), bool)),
            pair(mask=MASK),
        ]
    )
    assert {one.reason for one in bare.values()} == {"the row has no mask"}
    assert set(sourceless.values()) == {GONE}
    assert {one.reason for one in whole.values()} == {"the mask covers the whole picture"}
    assert some["background_lpips"] == NotScored("no network")
    assert isinstance(some["background_mse"], float)


# --- drawn pictures


def test_other_pictures_are_no_drawn_ones():
    bare, wild, hostile = Drawn().score(
        [
            pair(),
            pair(world=as_json(benchmark.case(1).source), prompt="a photo of my cat"),
            pair(world="[" * 9000),
        ]
    )
    assert {one.reason for one in bare.values()} == {
        "the row does not say what was drawn (column `world`)"
    }
    assert all("not in the captions' words" in one.reason for one in wild.values())
    assert all("column `world`" in one.reason for one in hostile.values())


# --- the judge


def test_the_judge_has_every_column_and_a_key_that_changes_with_the_network(clip, vit, squeezenet):
    named = Named(str(clip), str(vit), str(squeezenet))
    wanted = measures(("pixels", "clip", "structure", "lpips"), "some/model", named)
    assert wanted.families == ("clip", "structure", "lpips", "pixels")
    (found,) = Judge(wanted).score([pair()])
    assert tuple(found) == wanted.columns
    assert all(isinstance(value, float) for value in found.values())
    other = measures(("structure",), "some/model", Named(vit=str(clip)))
    assert other.keys["structure"] != wanted.keys["structure"]
    assert str(vit) in wanted.told["structure"]


def test_the_demo_model_is_judged_by_its_own_clip_and_lpips_needs_a_name():
    wanted = measures(("clip", "structure", "lpips"), "demo", Named())
    assert wanted.clip == wanted.vit
    assert wanted.told["clip"].startswith("demo (")
    assert "--lpips" in wanted.told["lpips"]
    (found,) = Judge(wanted).score([pair()])
    assert "--lpips" in found["lpips"].reason
    assert found["structure_distance"] > 0


def test_a_default_that_cannot_be_had_is_missed_and_a_named_one_is_an_error():
    wanted = measures(("clip",), "some/model", Named())
    assert isinstance(wanted.clip, NotScored)
    with pytest.raises(InvalidModel):
        measures(("clip",), "some/model", Named(clip="no/such-clip"))
