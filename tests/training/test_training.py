"""The recipe of the demo model: every stage takes steps, resumes exactly, and the export loads."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel

from pnp_batch.training import clip, data, export, linear, unet, vae
from pnp_batch.training.influence import influence
from pnp_batch.training.loop import Run, Settings
from pnp_batch.training.recipe import Options
from pnp_batch.training.recipe import run as run_stage

NARROW = (16, 16, 32, 32)


def settings(steps: int) -> Settings:
    return Settings(steps=steps, lr=1e-3, measure_every=1000, report_every=1, warmup=1)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Every stage after two steps each."""
    work = tmp_path_factory.mktemp("work")
    data.draw_all(work / "data", chunks=1, processes=1, count=6)
    vae.train_encoder(work, settings(2), batch=4)
    vae.train_decoder(work, settings(2), batch=2)
    clip.train(work, settings(2), batch=4)
    unet.train(work, settings(2), batch=2)
    return work


@pytest.fixture(scope="module")
def exported(work, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "model"
    run_stage("export", Options(work, out))
    return out


def advanced(run):
    """The averaged weights at the end of the budget."""
    while run.progress < 1:
        run.advance()
    return run.average


def tasks(work):
    return {
        "decoder": lambda: vae.DecoderTask(work, batch=2),
        "clip": lambda: clip.ClipTask(work / "data", batch=4),
        "unet": lambda: unet.UnetTask(work, batch=2, widths=NARROW),
    }


@pytest.mark.parametrize("stage", ["decoder", "clip", "unet"])
def test_a_resumed_run_ends_in_the_same_weights(stage, work, tmp_path):
    new = tasks(work)[stage]
    straight = advanced(Run(new(), settings(3), tmp_path / "straight"))
    first = Run(new(), settings(3), tmp_path / "halves")
    first.advance()
    first.save()
    second = Run(new(), settings(3), tmp_path / "halves")
    assert second.step == 1
    resumed = advanced(second)
    for (name, a), b in zip(
        straight.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_finished_run_trains_no_further(work, tmp_path):
    task = vae.DecoderTask(work, batch=2)
    Run(task, settings(1), tmp_path / "run").finish()
    again = Run(vae.DecoderTask(work, batch=2), settings(1), tmp_path / "run")
    assert again.progress == 1
    again.finish()
    assert again.step == 1


def test_every_stage_reports_its_quality(work):
    for stage, name in (
        ("linear", "held_out_psnr"),
        ("vae", "held_out_psnr"),
        ("clip", "recall_at_1"),
        ("unet", "feature_701"),
    ):
        last = json.loads((work / stage / "log.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 2
        assert name in last


def test_pictures_held_out_are_other_pictures():
    training = {spec.seed for chunk in range(3) for spec in data.specs(chunk)}
    assert not training & {spec.seed for spec in data.specs(data.HELD_OUT)}


def test_drawing_again_changes_nothing(tmp_path):
    data.draw_all(tmp_path, chunks=1, processes=1, count=3)
    before = data.load(tmp_path)
    data.draw_all(tmp_path, chunks=1, processes=1, count=3)
    assert (data.load(tmp_path).images == before.images).all()
    assert len(before) == len(before.captions) == 3


def test_missing_pictures_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="stage 'data'"):
        data.load(tmp_path)


def test_the_linear_autoencoder_survives_its_installation():
    torch.manual_seed(0)
    net = linear.LinearAutoencoder(vae.CHANNELS)
    pictures = torch.rand(8, 3, 64, 64) * 2 - 1
    model = vae.new_vae().eval()
    linear.install(net, model, pictures)
    with torch.no_grad():
        latents = model.encode(pictures).latent_dist.mean
        expected = net.decode(net.encode(pictures))
        made = model.decode(latents).sample
    assert (made - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert latents.mean().abs() < 0.05
    assert latents.square().mean() == pytest.approx(1, abs=0.2)


def test_the_tokenizer_knows_every_word_as_one_token():
    captions = data.every_caption()
    tokenizer = clip.new_tokenizer(captions)
    for text in captions[::97]:
        assert len(tokenizer(text).input_ids) == len(text.split()) + 2
    unknown = tokenizer("a zeppelin, überall").input_ids
    assert len(unknown) <= clip.TOKENS


def test_influence_is_nothing_for_equal_pictures_only():
    torch.manual_seed(0)
    model = unet.new_unet(NARROW).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    pair = torch.randn(2, 2, vae.CHANNELS, 16, 16)
    empty = torch.randn(1, clip.TOKENS, clip.WIDTH)
    found = influence(model, (pair[0], pair[1]), empty, 701, 0.1)
    assert set(found) == {"mid", "feature", "up1", "qk"}
    assert all(value > 0 for value in found.values())


def test_the_export_is_a_stable_diffusion_folder(exported):
    pipeline = StableDiffusionPipeline.from_pretrained(exported, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vae_scale_factor == 4
    assert pipeline.unet.config.sample_size == 16
    picture = pipeline("a red house", num_inference_steps=2, height=64, width=64).images[0]
    assert picture.size == (64, 64)


def test_the_export_holds_nothing_private_and_stays_small(exported, work):
    for path in exported.rglob("*.json"):
        text = path.read_text()
        assert "_name_or_path" not in text
        assert str(work) not in text
    assert export.weight_bytes(exported) <= export.LIMIT_BYTES
    assert not list(exported.rglob("*.bin"))


def test_the_export_holds_the_whole_clip(exported):
    model = CLIPModel.from_pretrained(exported / "clip")
    features = model.get_image_features(pixel_values=torch.zeros(1, 3, 64, 64))
    assert features.pooler_output.shape == (1, clip.WIDTH)


def test_an_export_without_a_unet_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="stage 'unet'"):
        export.averaged_unet(tmp_path)
