"""Variants of a comparison: how they are written, what they become, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pnp_batch import methods
from pnp_batch.config import RunConfig
from pnp_batch.errors import InvalidConfig
from pnp_batch.methods import Method
from pnp_batch.option import Option
from pnp_batch.variants import LONGEST, variants

if TYPE_CHECKING:
    from collections.abc import Mapping

JOB = RunConfig("m.csv", "out", guidance_scale=5.0, strength=0.6)


class Glow(Method):
    """A plug-in with parameters of its own, and ones whose values hold commas and colons."""

    name = "glow"
    summary = "for the tests"
    parameters = ("glow", "subject", "reweight", "pnp_f_layers", "local_blend", "clip")
    options: Mapping[str, Option] = {
        "glow": Option("how bright", type=float, low=0.0, high=1.0, shapes=True)
    }
    defaults: Mapping[str, float] = {"glow": 0.1}


@pytest.fixture
def glow(monkeypatch):
    monkeypatch.setitem(methods._OWN, "glow", f"{__name__}:Glow")
    methods.get.cache_clear()
    yield
    methods.get.cache_clear()


def jobs(text, config=JOB):
    return {variant.text: variant.job(config) for variant in variants(text, config)}


def test_a_method_a_preset_or_either_with_values():
    found = jobs("pnp, sdedit ,sdedit-low,sdedit-low:guidance-scale=3,pnp:pnp_f_t=0.50:steps=20")
    assert list(found) == [
        *("pnp", "sdedit", "sdedit-low", "sdedit-low:guidance_scale=3"),
        "pnp:pnp_f_t=0.5:steps=20",
    ]
    shaped = [(job.method, job.strength, job.guidance_scale) for job in found.values()]
    assert shaped == [
        *(("pnp", 0.6, 5.0), ("sdedit", 0.6, 5.0), ("sdedit", 0.5, 5.0), ("sdedit", 0.5, 3.0)),
        ("pnp", 0.6, 5.0),
    ]
    last = list(found.values())[-1]
    assert (last.pnp_f_t, last.steps) == (0.5, 20)
    assert [job.output for job in found.values()] == [
        *("out/pnp", "out/sdedit", "out/sdedit-low", "out/sdedit-low-guidance_scale-3"),
        "out/pnp-pnp_f_t-0.5-steps-20",
    ]
    assert {job.cache for job in found.values()} == {"out/latents"}


def test_a_preset_without_a_method_takes_the_jobs():
    (job,) = jobs("fast", RunConfig("m", "o", method="reconstruct", cache="kept")).values()
    assert (job.method, job.steps, job.deep_every, job.cache) == ("reconstruct", 20, 2, "kept")


def test_values_may_hold_commas_and_colons(glow):
    text = (
        "glow:pnp_f_layers=4,7-9:reweight=red=2,fluffy=0.5,copy,"
        "glow:clip=s3://models/clip:local_blend=yes:subject=red cat"
    )
    found = list(jobs(text).values())
    assert [job.method for job in found] == ["glow", "copy", "glow"]
    assert (found[0].pnp_f_layers, found[0].reweight) == ("4,7-9", "red=2,fluffy=0.5")
    assert (found[2].clip, found[2].local_blend) == ("s3://models/clip", True)
    assert found[2].subject == "red cat"
    assert found[2].output == "out/glow-clip-s3-models-clip-local_blend-true-subject-red-cat"


def test_a_plugins_own_parameters_are_set_as_set_does(glow):
    job = RunConfig("m", "o", set=("glow=0.3",))
    found = jobs("glow,glow:glow=0.7", job)
    assert [one.set for one in found.values()] == [("glow=0.3",), ("glow=0.7",)]
    with pytest.raises(InvalidConfig, match=r"glow:glow=2: glow: 2\.0 is outside 0\.\.1"):
        variants("glow:glow=2", job)


def test_a_long_name_is_cut_and_stays_its_own():
    texts = [f"pnp:negative_prompt={'x' * 200}{end}" for end in "ab"]
    folders = [variant.folder for variant in variants(",".join(texts), JOB)]
    assert [len(folder) for folder in folders] == [LONGEST, LONGEST]
    assert len(set(folders)) == 2


def test_without_a_list_the_usual_ones_are_compared():
    found = list(jobs(""))
    assert found[:1] == ["pnp"]
    assert {"sdedit-low", "sdedit-medium", "sdedit-high", "reconstruct"} <= set(found)
    assert {job.method for job in jobs("").values()} <= set(methods.names())


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("pnpp", "no method or preset 'pnpp'", "did you mean 'pnp'?"),
        ("sdedit-lo", "no method or preset 'sdedit-lo'", "did you mean 'sdedit-low'?"),
        ("pnp:pnp_f=1", "pnp has no parameter 'pnp_f'", "did you mean 'pnp_f_t'?"),
        ("copy:strength=1", "copy has no parameter 'strength'", "known: "),
        ("pnp:manifest=x", "pnp has no parameter 'manifest'", "known: "),
        ("pnp:pnp_f_t=x", "pnp_f_t='x': expected float", "pnp_f_t: share"),
        ("pnp:pnp_f_t", "'pnp_f_t' is no NAME=VALUE", "write pnp:NAME=VALUE"),
        ("pnp:pnp_f_t=2", "pnp_f_t: 2.0 is outside 0..1", "see --pnp-f-t"),
        ("copy,copy", "copy and copy are the same", "once"),
        ("sdedit,sdedit:strength=0.6", "sdedit and sdedit:strength=0.6 are the same", "once"),
        (
            "pnp:negative_prompt=a b,pnp:negative_prompt=a-b",
            "would both be called pnp-negative_prompt-a-b",
            "two outputs",
        ),
    ],
)
def test_what_is_wrong_is_named(text, told, hint):
    with pytest.raises(InvalidConfig) as refused:
        variants(text, JOB)
    assert told in str(refused.value)
    assert str(refused.value).startswith("--methods")
    assert hint in refused.value.hint
