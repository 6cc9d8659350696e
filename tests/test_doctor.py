"""The doctor: what is wrong is told by its name, with a hint, and ends no other check."""

from __future__ import annotations

import json
import sys

import pytest

from pnp_batch import cli
from pnp_batch.doctor import examine
from pnp_batch.storage import Storage
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model") / "sd1", "sd1")


def found(model, *uris):
    """The last check of each name."""
    return {check.name: check for check in examine(str(model), uris)}


def test_storage_on_s3_is_written_read_and_cleaned(model, s3):
    uri = s3("doctor")
    assert found(model, uri)["storage"].ok
    assert not Storage(uri).files()


def test_storage_that_cannot_be_written_is_a_problem_with_a_hint(model, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    check = found(model, str(tmp_path / "file"))["storage"]
    assert not check.ok
    assert "cannot write" in check.found
    assert check.hint


def test_a_bucket_that_does_not_exist_is_a_problem(model, s3):
    assert not found(model, "s3://no-such-bucket-anywhere/x")["storage"].ok


def test_a_cut_weight_file_is_named_and_the_other_checks_go_on(tmp_path):
    folder = tiny.save_model(tmp_path / "cut", "sd1")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    checks = found(folder, str(tmp_path))
    assert not checks["model"].ok
    assert "vae/diffusion_pytorch_model.safetensors" in checks["model"].found
    assert all(check.ok for name, check in checks.items() if name != "model")


def test_a_library_that_cannot_be_imported_is_a_problem(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    checks = found(model)
    assert not checks["ray"].ok
    assert checks["versions"].ok


def test_the_command_ends_with_1_when_there_is_a_problem(tmp_path, model, capsys):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", str(tmp_path / "file"), "--model", str(model), "--json"])
    assert ended.value.code == 1
    body = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in body["checks"] if not check["ok"]] == ["storage"]
