"""The configuration: where values come from, which are refused, and what shapes a picture."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from pnp_batch import config, given
from pnp_batch.config import OPTIONS, SHAPING, RunConfig
from pnp_batch.errors import EXIT_INVALID, EXIT_USAGE, InvalidConfig, WrongUsage
from pnp_batch.parameters import OPTIONS as PARAMETERS
from pnp_batch.presets import PRESETS

NEEDED = {"manifest": "m.csv", "output": "out"}
# A value other than the default for every option; those marked here shape the picture.
OTHER = {
    "model": "other",
    "revision": "v2",
    "method": "sdedit",
    "steps": 25,
    "inversion_steps": 100,
    "set": ("glow=2",),
    "guidance_scale": 3.0,
    "negative_prompt": "blurry",
    "pnp_f_t": 0.1,
    "pnp_attn_t": 0.1,
    "strength": 0.5,
    "pnp_f_layers": "4,7-9",
    "pnp_attn_layers": "4-8",
    "inversion": "direct",
    "subject": "cat",
    "mask_mode": "both",
    "mask_threshold": 0.3,
    "mask_dilation": 1,
    "mask_softness": 0.5,
    "cross_steps": 0.4,
    "self_steps": 0.6,
    "reweight": "red=2",
    "local_blend": True,
    "masactrl_step": 2,
    "masactrl_layer": 8,
    "masactrl_mask": True,
    "clip": "openai/clip-vit-base-patch32",
    "optimiser_steps": 100,
    "learning_rate": 0.01,
    "cutouts": 8,
    "clip_weight": 2.0,
    "structure_weight": 3.0,
    "source_weight": 0.4,
    "latent_weight": 0.1,
    "sparsity_weight": 6.0,
    "training_images": 10,
    "deep_every": 3,
    "resolution": 64,
    "fit": "pad",
    "cache": "elsewhere",
    "image_format": "webp",
    "sink": "webdataset",
    "provenance": False,
    "workers": 3,
    "max_workers": 5,
    "gpus_per_worker": 0.5,
    "batch_size": 2,
    "device": "cuda",
    "dtype": "float16",
    "memory_format": "channels-last",
    "attention": "plain",
    "compile": True,
    "limit": 5,
    "seed": 1,
    "max_failed": 0.5,
    "allow_root": ("/data",),
    "allow_host": ("example.org",),
    "max_image_mib": 1.0,
    "max_image_mpixels": 1.0,
    "read_timeout": 1.0,
    "row_timeout": 60.0,
    "storage_patience": 5.0,
    "budget_hours": 12.0,
    "drain_timeout": 0.0,
    "wait": True,
    "address": "auto",
}
SHAPES = {
    *("method", "steps", "inversion_steps", "guidance_scale", "negative_prompt", "pnp_f_t"),
    *("pnp_attn_t", "strength", "resolution", "fit", "image_format", "device", "dtype", "seed"),
    *("deep_every", "provenance", "sink", "set", *PARAMETERS),
}


def built(**values):
    return RunConfig(**{**NEEDED, **values})


def refusal(**values):
    with pytest.raises(InvalidConfig) as refused:
        built(**values)
    assert refused.value.exit_code == EXIT_INVALID
    assert refused.value.hint
    return str(refused.value)


def fingerprint(**values):
    return config.fingerprint(config.shaping(built(**values)))


def test_flags_beat_the_environment_which_beats_the_file_which_beats_defaults():
    environ = {"PNP_BATCH_STEPS": "20", "PNP_BATCH_SEED": "2", "PNP_BATCH_OTHER": "x"}
    file = {"steps": 10, "seed": 1, "fit": "pad"}
    made = given.build({**NEEDED, "steps": 30}, file, environ)
    assert (made.steps, made.seed, made.fit, made.method) == (30, 2, "pad", "pnp")


def test_a_file_may_name_manifest_and_output():
    made = given.build({"output": "flag"}, {"manifest": "m", "output": "file"}, {})
    assert (made.manifest, made.output) == ("m", "flag")


@pytest.mark.parametrize("missing", ["manifest", "output"])
def test_manifest_and_output_are_needed(missing):
    with pytest.raises(WrongUsage, match=missing.upper() if missing == "manifest" else "--output"):
        given.build({**NEEDED, missing: ""}, {}, {})
    assert WrongUsage.exit_code == EXIT_USAGE


def test_the_process_environment_is_read_when_no_other_is_given(monkeypatch):
    monkeypatch.setenv("PNP_BATCH_STEPS", "7")
    assert given.build(NEEDED).steps == 7


def test_the_environment_sets_every_kind_of_option():
    environ = {
        "PNP_BATCH_GUIDANCE_SCALE": "3",
        "PNP_BATCH_ALLOW_ROOT": "/a,/b",
        "PNP_BATCH_NEGATIVE_PROMPT": "",
    }
    made = given.build(NEEDED, {}, environ)
    assert (made.guidance_scale, made.allow_root, made.negative_prompt) == (3.0, ("/a", "/b"), "")
    with pytest.raises(InvalidConfig, match="PNP_BATCH_STEPS='many': expected int"):
        given.build(NEEDED, {}, {"PNP_BATCH_STEPS": "many"})


def test_a_file_is_yaml_whose_keys_are_the_fields():
    assert given.read_file("steps: 5\nallow_host: [a, b]\n", "j") == {
        "steps": 5,
        "allow_host": ["a", "b"],
    }
    assert given.read_file("# nothing\n", "job.yaml") == {}


def test_an_unknown_key_is_answered_with_the_nearest_one():
    with pytest.raises(InvalidConfig, match=r"job\.yaml: unknown key 'guidance_scal'") as refused:
        given.read_file("guidance_scal: 3\n", "job.yaml")
    assert refused.value.hint == "did you mean 'guidance_scale'?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 5\nfit: [crop\n", r"job\.yaml, line 3: not valid YAML"),
        ("- steps\n", r"job\.yaml: expected `key: value` lines"),
        ("5: 3\n", r"job\.yaml: unknown key 5"),
        ("steps: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_job_is_refused(text, message):
    with pytest.raises(InvalidConfig, match=message):
        given.read_file(text, "job.yaml")


def test_one_root_or_host_in_a_file_needs_no_list():
    assert built(allow_root="/data", allow_host="example.org").allow_root == ("/data",)
    assert built(allow_root=["/a", "/b"]).allow_root == ("/a", "/b")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "5"),
        ("steps", 5.0),
        ("steps", True),
        ("steps", [5]),
        ("steps", None),
        ("guidance_scale", "7"),
        ("guidance_scale", False),
        ("negative_prompt", 3),
        ("method", None),
        ("fit", ("crop",)),
        ("allow_root", [1]),
        ("allow_root", None),
        ("allow_host", {"a": 1}),
        ("cache", 1),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_name(name, value):
    assert refusal(**{name: value}).startswith(f"{name}: expected ")


@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if o.low is not None])
def test_a_number_out_of_range_is_refused_by_name(name):
    option = OPTIONS[name]
    beyond = [option.low - 1] + ([] if option.high is None else [option.high + 1])
    beyond += [math.nan, math.inf] if option.type is float else []
    for value in beyond:
        assert refusal(**{name: option.type(value) if math.isfinite(value) else value}).startswith(
            f"{name}: "
        )


@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if o.choices])
def test_an_unknown_choice_is_refused_by_name(name):
    assert f"{name}: unknown value 'nonsense'" in refusal(**{name: "nonsense"})


@pytest.mark.parametrize("name", OPTIONS)
def test_other_values_than_the_default_are_taken(name):
    assert getattr(built(**{name: OTHER[name]}), name) == OTHER[name]


def test_inversion_steps_are_a_multiple_of_steps():
    assert built(steps=10, inversion_steps=30).sampling.inversion == 30
    assert built(steps=10).sampling.inversion == 10
    assert "not a multiple of steps" in refusal(steps=10, inversion_steps=25)
    assert "not a multiple of steps" in refusal(steps=10, inversion_steps=5)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_fingerprint_changes_with_what_shapes_a_picture_and_with_nothing_else(name):
    assert (fingerprint(**{name: OTHER[name]}) != fingerprint()) == (name in SHAPES)
    assert (name in SHAPING) == (name in SHAPES)


def test_the_fingerprint_does_not_depend_on_how_a_value_was_written():
    assert fingerprint(guidance_scale=7, pnp_f_t=1) == fingerprint(guidance_scale=7.0, pnp_f_t=1.0)
    assert fingerprint(inversion_steps=50) == fingerprint()
    assert fingerprint(pnp_f_layers="7, 8,9,4") == fingerprint(pnp_f_layers="4,7-9")
    assert fingerprint(pnp_f_layers=4) == fingerprint()


def test_a_configuration_survives_json():
    import json

    made = built(**OTHER)
    assert RunConfig(**json.loads(json.dumps(made.as_dict()))) == made
    assert set(made.as_dict()) == {f.name for f in fields(RunConfig)}


def test_a_changed_copy_is_checked_again():
    assert config.with_values(built(), steps=5).steps == 5
    with pytest.raises(InvalidConfig):
        config.with_values(built(), steps=0)


def test_the_cache_lies_in_the_output_unless_it_is_named():
    assert built().cache_uri == "out/latents"
    assert built(cache="s3://b/c").cache_uri == "s3://b/c"
    assert built(cache="none").cache_uri is None


@pytest.mark.parametrize(("text", "value"), [("1", True), ("yes", True), ("False", False)])
def test_a_switch_in_the_environment(text, value):
    assert given.read_environment({"PNP_BATCH_WAIT": text}) == {"wait": value}


@pytest.mark.parametrize("text", ["", "maybe", "2"])
def test_a_switch_in_the_environment_that_is_none_is_refused(text):
    with pytest.raises(InvalidConfig, match="PNP_BATCH_WAIT"):
        given.read_environment({"PNP_BATCH_WAIT": text})


@pytest.mark.parametrize("field", ["manifest", "output", "cache"])
def test_credentials_in_a_uri_are_refused_before_they_reach_a_record(field):
    with pytest.raises(InvalidConfig, match=field) as refused:
        built(**{field: "s3://key:s3cret@bucket/out"})
    assert "s3cret" not in str(refused.value)
    built(**{field: "abfs://container@account.dfs.core.windows.net/out"})


@pytest.mark.parametrize("name", OPTIONS)
def test_the_command_of_a_job_says_the_same_job(name):
    from pnp_batch.cli.run import run

    job = built(**{name: OTHER[name]})
    words = given.command(job)
    assert words[:4] == ["run", "m.csv", "--output", "out"]
    parsed = run.make_context("run", words[1:]).params
    parsed.pop("as_json")
    parsed.pop("config_file")
    assert given.build({k: v for k, v in parsed.items() if v not in (None, ())}, environ={}) == job
    assert given.command(built()) == words[:4]


def test_a_preset_stands_for_the_options_it_names_and_no_others():
    for name, values in PRESETS.items():
        assert given.build({**NEEDED, "preset": name}, environ={}) == built(**values)
    assert PRESETS["exact"] == {}
    trades = [values for values in PRESETS.values() if "method" not in values]
    costs = [values.get("steps", 50) / values.get("deep_every", 1) for values in trades]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == len(costs)


def test_whatever_is_given_beats_the_preset_wherever_that_is_named():
    values = dict(PRESETS["fast"])
    values["deep_every"] += 1
    flags = {**NEEDED, "deep_every": values["deep_every"]}
    assert given.build({**flags, "preset": "fast"}, environ={}) == built(**values)
    assert given.build(flags, {"preset": "fast"}, {}) == built(**values)
    assert given.build(flags, {"preset": "exact"}, {"PNP_BATCH_PRESET": "fast"}) == built(**values)
    made = given.build({**NEEDED, "preset": "fast"}, {"deep_every": values["deep_every"]}, {})
    assert made == built(**values)
    assert "preset" not in " ".join(given.command(made))  # the command names the values


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(InvalidConfig) as refused:
        given.build({**NEEDED, "preset": "fsat"}, environ={})
    assert "preset: unknown value 'fsat'" in str(refused.value)
    assert "fast" in refused.value.hint


@pytest.mark.parametrize("asked", ["2:8", {"workers": 2, "max_workers": 8}])
def test_workers_are_a_number_or_the_least_and_the_most(asked):
    job = built(**(asked if isinstance(asked, dict) else {"workers": asked}))
    assert (job.workers, job.max_workers) == (2, 8)
    assert given.command(job)[-4:] == ["--workers", "2", "--max-workers", "8"]


def test_the_command_of_a_job_for_a_dashboard_submits_it_until_it_is_there(monkeypatch):
    job = built(address="http://head:8265")
    assert given.command(job) == ["submit", *given.arguments(job)]
    assert given.command(built(address="head:6379"))[0] == "run"
    monkeypatch.setenv("PNP_BATCH_SUBMITTED", "pnp-0123456789ab-1")
    assert given.command(job) == ["run", *given.arguments(job)]


@pytest.mark.parametrize("given", ["2:", "2:x", "1:2:3", "two"])
def test_workers_that_are_no_numbers_are_refused(given):
    assert repr(given) in refusal(workers=given)


def test_the_most_workers_are_not_fewer_than_the_least():
    assert "max_workers is 2" in refusal(workers="3:2")
    assert "0 is outside" in refusal(workers="0:2")


def test_a_job_file_means_two_numbers_by_a_colon_and_none_of_base_60():
    assert given.read_file("workers: 2:8\nseed: -30\nsteps: 20", "job.yaml") == {
        "workers": "2:8",
        "seed": -30,
        "steps": 20,
    }
