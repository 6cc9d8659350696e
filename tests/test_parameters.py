"""The methods' parameters: where a value comes from, what is refused, and what rows share."""

from __future__ import annotations

import json
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pnp_batch import config, manifest, methods, parameters
from pnp_batch.config import RunConfig
from pnp_batch.errors import InvalidConfig
from pnp_batch.methods import Method
from pnp_batch.option import Option
from pnp_batch.rows import expand


class Glow(Method):
    """What a plug-in may bring: parameters of its own, and defaults where the job has none."""

    name = "glow"
    summary = "for the tests"
    parameters = ("guidance_scale", "learning_rate", "inversion", "subject", "glow", "halo")
    defaults: ClassVar = {"learning_rate": 0.25, "glow": 3, "halo": False}
    options: ClassVar = {
        "glow": Option("how bright", type=int, low=0, high=9),
        "halo": Option("with a ring", type=bool, per_row=True),
    }
    inversions = ("ddim", "direct")


class Dim(Glow):
    """The same, but only weak with a ring."""

    name = "dim"

    def check(self, parameters):
        super().check(parameters)
        if parameters["halo"] and parameters["glow"] > 5:
            raise InvalidConfig("glow: 6 or more has no ring", "use less")


KNOWN = {"glow": Glow(), "dim": Dim(), "sdedit": methods.get("sdedit")}


def job(**values):
    return RunConfig("m", "o", **values)


def resolved(method="glow", **values):
    return parameters.resolved(KNOWN[method], job(**values).parameters)


def refusal(method="glow", **values):
    with pytest.raises(InvalidConfig) as refused:
        resolved(method, **values)
    assert refused.value.hint
    return str(refused.value)


def expanded(path, rows, **values):
    path.write_text("".join(json.dumps({"image": "a", "prompt": "b", **r}) + "\n" for r in rows))
    return from_file(path, **values)


def from_file(path, **values):
    read = manifest.read(str(path))
    job = RunConfig(str(path), "o", **{"method": "glow", **values})
    return pa.concat_tables(expand(read, job, KNOWN)).to_pylist()


def test_a_method_has_values_for_all_its_parameters_and_no_others():
    wanted = {"guidance_scale": 7.5, "learning_rate": 0.25, "inversion": "ddim", "subject": ""}
    assert resolved() == {**wanted, "glow": 3, "halo": False}


def test_the_job_beats_the_methods_default():
    made = resolved(learning_rate=0.5, guidance_scale=2, set=("glow=7", "halo=yes"))
    assert (made["learning_rate"], made["guidance_scale"]) == (0.5, 2.0)
    assert (made["glow"], made["halo"]) == (7, True)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"set": ("glow=10",)}, "glow: 10 is outside 0..9"),
        ({"set": ("glow=bright",)}, "glow: expected int, got 'bright'"),
        ({"set": ("halo=maybe",)}, "halo: expected bool, got 'maybe'"),
        ({"inversion": "null-text"}, "inversion: glow knows no 'null-text'"),
    ],
)
def test_what_a_method_does_not_take_is_refused(values, told):
    assert refusal(**values) == told


def test_a_method_refuses_values_that_do_not_fit_together():
    assert resolved("dim", set=("glow=6",))["glow"] == 6
    assert refusal("dim", set=("glow=6", "halo=1")) == "glow: 6 or more has no ring"


@pytest.mark.parametrize("text", ["glow", "=3", ""])
def test_a_setting_is_a_name_and_a_value(text):
    with pytest.raises(InvalidConfig, match="is no NAME=VALUE"):
        job(set=(text,))


def test_rows_share_a_batch_whatever_each_has_for_itself(tmp_path):
    rows = [
        {},
        {"parameters": {"subject": "cat", "halo": True}, "guidance_scale": 3},
        {"parameters": {"glow": 4}},
        {"parameters": {"glow": 3}, "pnp_f_t": 0.1},
    ]
    made = expanded(tmp_path / "m.jsonl", rows)
    shared = [row["shared"] for row in made]
    assert shared[0] == shared[1] == shared[3] != shared[2]
    assert json.loads(shared[2]) == {"glow": 4, "inversion": "ddim", "learning_rate": 0.25}
    assert json.loads(made[1]["own"]) == {"halo": True, "subject": "cat"}
    assert json.loads(made[0]["own"]) == {"halo": False, "subject": ""}
    assert made[1]["guidance_scale"] == 3


def test_a_row_beats_the_job(tmp_path):
    rows = [{"parameters": {"learning_rate": 0.5}}, {}]
    made = expanded(tmp_path / "m.jsonl", rows, learning_rate=0.125)
    assert [json.loads(row["shared"])["learning_rate"] for row in made] == [0.5, 0.125]


def test_a_struct_and_a_json_text_say_the_same(tmp_path):
    given = [{"glow": 4, "subject": None}, {"glow": None, "subject": "cat"}, None]
    texts = ['{"glow": 4}', '{"subject": "cat"}', None]
    made = []
    for name, column in (("struct", pa.array(given)), ("text", pa.array(texts))):
        path = tmp_path / f"{name}.parquet"
        own = {"image": ["a"] * 3, "prompt": ["b"] * 3, "parameters": column}
        pq.write_table(pa.table(own), path)
        made.append([(row["shared"], row["own"], row["row_id"]) for row in from_file(path)])
    assert made[0] == made[1]
    assert len({shared for shared, _, _ in made[0]}) == 2


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ("[1]", "parameters: '[1]' is no JSON object"),
        ("glow", "parameters: 'glow' is no JSON object"),
        ('{"glwo": 3}', "parameters: 'glwo' is unknown; did you mean 'glow'?"),
        ('{"glow": 3.5}', "glow: expected int, got 3.5"),
        ('{"clip": "x"}', "parameters: clip is of the whole job"),
        ('{"strength": 0.1}', "parameters: strength has a column of its own"),
        ('{"inversion": "null-text"}', "inversion: glow knows no 'null-text'"),
    ],
)
def test_wrong_parameters_are_a_problem_of_their_row_alone(tmp_path, told, problem):
    good, bad = expanded(tmp_path / "m.jsonl", [{}, {"parameters": told}])
    assert good["problem"] is None
    assert bad["problem"].startswith(problem)


def test_parameters_of_a_later_version_leave_old_fingerprints_as_they_are():
    plain = config.shaping(job())
    assert not set(plain) & set(config.ADDED)
    assert config.shaping(job(mask_mode="both"))["mask_mode"] == "both"
