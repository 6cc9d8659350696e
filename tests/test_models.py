"""Models: what is incomplete is refused by name before torch is loaded; what is whole works."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pnp_batch.errors import EXIT_INVALID, InvalidModel
from pnp_batch.models import CONFIGS, WEIGHTS, StableDiffusion, find
from tests import tiny

SIDE = tiny.SIDE * tiny.SCALE_FACTOR
WEIGHT_FILES = [f"{part}/{stem}.safetensors" for part, stem in WEIGHTS.items()]
WORDS = ("tokenizer.json", "vocab.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "whole", "sd1")


@pytest.fixture
def model(whole, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture(scope="module")
def loaded(whole):
    return StableDiffusion(find(str(whole)))


def refusal(name):
    with pytest.raises(InvalidModel) as refused:
        find(str(name))
    assert refused.value.exit_code == EXIT_INVALID
    assert refused.value.hint
    return str(refused.value)


def test_a_whole_model_is_found_with_its_sizes(whole):
    found = find(str(whole))
    assert found.path == whole
    assert found.resolution == SIDE
    assert found.scale_factor == tiny.SCALE_FACTOR
    assert found.multiple == SIDE
    assert found.weight_bytes == sum((whole / file).stat().st_size for file in WEIGHT_FILES)


def test_the_embedded_model_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find("demo")
    assert found.working_resolution(None) == found.resolution
    assert len(found.digest) == 64


@pytest.mark.parametrize("file", ["model_index.json", *CONFIGS.values(), *WEIGHT_FILES])
def test_a_missing_file_is_named(model, file):
    (model / file).unlink()
    assert Path(file).name in refusal(model)
    assert Path(file).parent.name in refusal(model)


@pytest.mark.parametrize("part", [*CONFIGS, "tokenizer"])
def test_a_missing_part_is_named(model, part):
    shutil.rmtree(model / part)
    assert f"{part}/" in refusal(model)


def test_a_tokenizer_without_words_is_refused(model):
    for file in (model / "tokenizer").iterdir():
        file.unlink()
    assert "tokenizer/tokenizer.json" in refusal(model)


@pytest.mark.parametrize("file", ["model_index.json", *CONFIGS.values()])
@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"[]", b"3"])
def test_broken_json_is_named(model, file, content):
    (model / file).write_bytes(content)
    assert Path(file).name in refusal(model)


def test_a_broken_tokenizer_is_named(model):
    (words,) = [f for f in (model / "tokenizer").iterdir() if f.name in WORDS]
    words.write_bytes(words.read_bytes()[:100])
    assert f"tokenizer/{words.name}" in refusal(model)


@pytest.mark.parametrize(
    ("part", "key"),
    [("unet", "sample_size"), ("unet", "in_channels"), ("vae", "block_out_channels")],
)
def test_a_configuration_without_a_size_is_named(model, part, key):
    file = model / CONFIGS[part]
    config = json.loads(file.read_text())
    del config[key]
    file.write_text(json.dumps(config))
    assert f"{CONFIGS[part]} has no {key}" in refusal(model)


@pytest.mark.parametrize("file", WEIGHT_FILES)
@pytest.mark.parametrize("keep", [0, 7, 8, 100, 0.5, -1])
def test_truncated_weights_are_named(model, file, keep):
    data = (model / file).read_bytes()
    length = int(len(data) * keep) if isinstance(keep, float) else keep % len(data)
    (model / file).write_bytes(data[:length])
    assert f"{file} is no whole safetensors file" in refusal(model)


@pytest.mark.parametrize(
    "content", [b"\xff" * 64, b"\2" + bytes(7) + b"[]", b"\2" + bytes(7) + b"{}x", b"\0" * 8]
)
def test_weights_that_are_no_safetensors_are_named(model, content):
    (model / WEIGHT_FILES[0]).write_bytes(content)
    assert f"{WEIGHT_FILES[0]} is no whole safetensors file" in refusal(model)


@pytest.mark.parametrize("file", WEIGHT_FILES)
def test_pickled_weights_are_no_replacement(model, file):
    (model / file).rename((model / file).with_suffix(".bin"))
    assert f"{file} is missing" in refusal(model)


def test_sharded_weights_are_found_and_each_shard_is_checked(model):
    file = model / "unet/diffusion_pytorch_model.safetensors"
    shard = file.rename(file.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    index = file.with_name(f"{file.name}.index.json")
    index.write_text(json.dumps({"weight_map": {"a": shard.name, "b": shard.name}}))
    assert find(str(model)).weight_bytes > shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    assert shard.name in refusal(model)
    shard.unlink()
    assert shard.name in refusal(model)
    for content in ({}, {"weight_map": {}}, {"weight_map": []}):
        index.write_text(json.dumps(content))
        assert index.name in refusal(model)


def test_what_is_no_directory_is_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    for name in (file, tmp_path / "absent", "absent"):
        assert f"{str(name)!r}: no such directory" in refusal(name)
    assert "model_index.json" in refusal(tmp_path)


def test_a_hub_model_that_cannot_be_had_is_refused():
    assert "nor can it be had from the hub" in refusal("no-such-owner/no-such-model")


def test_a_damaged_model_is_refused_without_torch(model):
    weights = model / WEIGHT_FILES[0]
    weights.write_bytes(weights.read_bytes()[:-1])
    code = (
        "import sys\n"
        "from pnp_batch.errors import InvalidModel\n"
        "from pnp_batch.models import find\n"
        "find('demo').digest\n"
        "try:\n"
        "    find(sys.argv[1])\n"
        "except InvalidModel as error:\n"
        "    print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert WEIGHT_FILES[0] in done.stdout


@pytest.mark.parametrize(
    "file", [*WEIGHT_FILES, *CONFIGS.values(), "tokenizer/tokenizer_config.json"]
)
def test_the_digest_covers_every_byte_that_is_loaded(model, file):
    before = find(str(model)).digest
    assert find(str(model)).digest == before
    data = bytearray((model / file).read_bytes())
    if file.endswith(".json"):
        data += b"\n"
    else:
        data[-1] ^= 1
    (model / file).write_bytes(data)
    assert find(str(model)).digest != before


def test_the_digest_covers_nothing_else(model, tmp_path):
    before = find(str(model)).digest
    (model / "README.md").write_text("a model card")
    (model / "safety_checker").mkdir()
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    assert find(str(model)).digest == before
    assert find(str(model.rename(tmp_path / "moved"))).digest == before


def test_a_resolution_is_a_multiple_of_what_the_unet_halves(whole):
    found = find(str(whole))
    assert found.working_resolution(None) == SIDE
    assert found.working_resolution(3 * SIDE) == 3 * SIDE
    with pytest.raises(InvalidModel, match=f"resolution 70 is no multiple of {SIDE}") as refused:
        found.working_resolution(70)
    assert refused.value.hint == f"use --resolution {2 * SIDE}"


def test_texts_have_the_model_s_tokens_and_do_not_depend_on_others(loaded, whole):
    cat = loaded.text("a cat")
    assert cat.shape == (tiny.TOKENS, tiny.WIDTH)
    assert not torch.equal(cat, loaded.text(""))
    again = StableDiffusion(find(str(whole)))
    again.text("something else")
    assert torch.equal(again.text("a cat"), cat)
    assert loaded.text("long " * 1000).shape == cat.shape


def test_pictures_become_latents_and_latents_pictures(loaded):
    assert loaded.latent_shape == (4, tiny.SIDE)
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    latents = loaded.encode(Image.fromarray(noise))
    assert latents.shape == (4, tiny.SIDE, tiny.SIDE)
    assert latents.dtype == torch.float32
    picture = loaded.decode(latents)
    assert (picture.mode, picture.size) == ("RGB", (SIDE, SIDE))
    assert np.ptp(np.asarray(picture)) > 0


def test_latents_are_scaled_as_the_vae_says(loaded):
    black = Image.new("RGB", (SIDE, SIDE))
    with torch.inference_mode():
        mean = loaded.vae.encode(torch.full((1, 3, SIDE, SIDE), -1.0)).latent_dist.mean[0]
    torch.testing.assert_close(loaded.encode(black), mean * 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_that_is_not_finite_is_an_error(loaded, value):
    with pytest.raises(FloatingPointError, match="not finite"):
        loaded.decode(torch.full((4, tiny.SIDE, tiny.SIDE), value))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "_class_name", "SD3Transformer2DModel"),
        ("unet", "up_block_types", ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"]),
        ("unet", "layers_per_block", 1),
        ("unet", "addition_embed_type", "text_time"),
        ("unet", "in_channels", 9),
        ("unet", "cross_attention_dim", 7),
        ("vae", "latent_channels", 16),
        ("text_encoder", "hidden_size", 7),
        ("scheduler", "prediction_type", "sample"),
    ],
)
def test_a_model_of_another_family_is_refused_with_what_is_wrong(model, part, key, value):
    file = model / CONFIGS[part]
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    assert repr(value) in (told := refusal(model)) or f"{value}" in told
    assert told.count("config.json") == 1


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_weights_of_another_model_are_refused(model, part):
    demo = find("demo").path / part / f"{WEIGHTS[part]}.safetensors"
    shutil.copy(demo, model / part / f"{WEIGHTS[part]}.safetensors")
    assert "do not belong" in refusal(model)


def test_other_files_than_those_digested_are_refused(model):
    found = find(str(model))
    assert found.digest
    found.check_digest()
    file = model / "unet" / f"{WEIGHTS['unet']}.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InvalidModel, match="not those"):
        found.check_digest()
