"""Object stores of every kind: whole writes, one winner, one attempt a call, and plain refusals."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pnp_batch import cli, client
from pnp_batch.client import call
from pnp_batch.errors import ImageNotFound, ImageTooLarge, StorageError
from pnp_batch.source import SourcePolicy, read_source
from pnp_batch.storage import Storage, StorageUnavailable
from tests import emulators
from tests.pictures import PNG
from tests.source.site import serving
from tests.torn import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

STORES = ("s3", "gs", "az")
SECRET = "c2VjcmV0LW9mLXRlc3Rz"


@pytest.fixture(params=emulators.STORES)
def root(request, tmp_path):
    """An empty root in each store."""
    return Storage(request.getfixturevalue(request.param)(f"objects/{tmp_path.name}"), patience=5)


def together(count, work):
    """What so many threads get that do the same at the same moment, each with its own number."""
    start, answers = threading.Barrier(count), {}

    def run(number):
        start.wait()
        answers[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_of_many_who_create_an_object_one_wins(root):
    for attempt in range(3):
        name = f"lease-{attempt}"
        made = together(8, lambda number, name=name: root.create(name, b"%d" % number))
        winners = [number for number, won in made.items() if won]
        assert len(winners) == 1
        assert root.read(name) == b"%d" % winners[0]
        assert not root.create(name, b"later")
        assert root.create(name, b"%d" % winners[0]), "our own bytes are a success"


def test_it_is_the_store_that_refuses_to_create_twice(root):
    root.write("x", b"first")
    more = {**root.store.write(b"second"), **root.store.create()}
    with pytest.raises(client.storage_errors()):
        call(root.fs, "pipe_file", root.path("x"), b"second", seconds=20, **more)
    assert root.read("x") == b"first"


def test_an_object_appears_whole(root):
    versions = [bytes([number]) * 6_000_000 for number in range(3)]
    root.write("x", versions[0])
    with reading(root, "x", versions) as reads:
        for number in range(6):
            root.write("x", versions[number % 3])
    assert reads.count > 1
    assert reads.torn == 0


def test_large_objects_are_read_whole_and_in_pieces(root):
    data = bytes(range(256)) * 2**15  # 8 MiB
    root.write("large", data)
    assert root.size("large") == len(data)
    assert root.read_piece("large", 5_000_000, 5_000_010) == data[5_000_000:5_000_010]
    with root.open("large") as file:
        assert file.read() == data


def test_images_are_read_within_their_limits(root):
    root.write("images/a b.png", PNG)
    policy = SourcePolicy(base=root.uri, read_timeout=30, max_bytes=len(PNG))
    assert read_source("images/a b.png", policy) == PNG
    assert read_source(f"{root.uri}/images/a b.png", policy) == PNG
    for uri in ("images", "no.png", f"{root.uri.partition(':')[0]}://no-such-bucket/a.png"):
        with pytest.raises(ImageNotFound):
            read_source(uri, policy)
    root.write("large.png", PNG + b"x")
    with pytest.raises(ImageTooLarge):
        read_source("large.png", policy)


def test_a_bucket_that_does_not_exist_is_no_place_to_write(root):
    scheme = root.uri.partition(":")[0]
    with pytest.raises(StorageUnavailable, match=f"cannot write {scheme}://no-such-bucket/x"):
        Storage(f"{scheme}://no-such-bucket").write("x", b"1")


def test_what_is_missing_is_two_lines(root, capsys):
    for command in (["status", root.uri], ["validate", f"{root.uri}/m.csv"], ["retry", root.uri]):
        with pytest.raises(SystemExit):
            cli.main(command)
        error, hint = capsys.readouterr().err.strip().splitlines()
        assert error.startswith("error: ")
        assert root.uri in error
        assert hint.startswith("hint: ")


def test_the_doctor_names_the_store_and_tells_no_secret(root, capsys):
    with pytest.raises(SystemExit):
        cli.main(["doctor", root.uri, "--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    (told,) = [check["found"] for check in checks if check["name"] == "storage"]
    assert f"{root.store.name} at http://127.0.0.1:" in told
    assert emulators.KEY not in told
    if root.uri.startswith("s3"):
        assert "region us-east-1" in told
    if root.uri.startswith("az"):
        assert f"account {emulators.ACCOUNT}" in told
    assert root.files() == []


@dataclass
class Bad:
    """A server in the place of a store, which answers every request alike."""

    scheme: str
    server: Any
    answer: Any = (503, {}, b"busy")

    @property
    def root(self) -> Storage:
        """A place in it, for who has no patience: two attempts."""
        return Storage(f"{self.scheme}://bucket/out", patience=0)


@pytest.fixture(params=STORES)
def bad(request, monkeypatch) -> Iterator[Bad]:
    """A store that is none."""
    with serving() as server:
        endpoint = f"http://{server.address}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        there = emulators.connection_string(f"{endpoint}/account", SECRET)
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", there)
        conf = {scheme: {"skip_instance_cache": True} for scheme in STORES}
        monkeypatch.setattr("fsspec.config.conf", conf)
        client.forget()
        found = Bad(request.param, server)
        server.routes = Everywhere(found)
        yield found
        client.forget()


class Everywhere:
    """Routes of which each is the same."""

    def __init__(self, bad: Bad) -> None:
        self._bad = bad

    def get(self, path: str, otherwise: Any) -> Any:
        """What is answered, whatever is asked for."""
        return self._bad.answer


@pytest.mark.parametrize("status", [500, 503, 429])
def test_each_attempt_is_one_request(bad, status, monkeypatch):
    bad.answer = (status, {}, b"{}")
    with pytest.raises(StorageUnavailable, match=f"cannot read {bad.scheme}://bucket/out/x"):
        bad.root.read("x")
    assert len(bad.server.hits) == 2, "the retries of two layers multiply"


REFUSALS = {
    "s3": (403, b"<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>"),
    "gs": (401, b'{"error": {"code": 401, "message": "Request had invalid authentication"}}'),
    "az": (403, b"<Error><Code>AuthenticationFailed</Code><Message>no</Message></Error>"),
}


def test_wrong_credentials_are_told_at_once_in_two_lines(bad, capsys):
    status, body = REFUSALS[bad.scheme]
    bad.answer = (status, {"Content-Type": "application/xml"}, body)
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", f"{bad.scheme}://bucket/out"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    error, hint = said.strip().splitlines()
    assert error.startswith(f"error: cannot read {bad.scheme}://bucket/out/run.json: ")
    assert "credentials" in hint
    assert SECRET not in said
    assert len(bad.server.hits) == 1, "a refusal lasts"
    with pytest.raises(StorageError, match="PermissionError"):
        read_source(f"{bad.scheme}://bucket/a.png", SourcePolicy(base=".", read_timeout=20))


def test_a_call_that_is_not_answered_ends_in_time(bad):
    going = threading.Event()
    bad.answer = lambda _wire: going.wait(20)
    with pytest.raises(TimeoutError):
        call(bad.root.fs, "cat_file", "bucket/x", seconds=0.3)
    going.set()


@pytest.mark.long
def test_azure_refuses_a_wrong_key(az, monkeypatch):
    right = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    wrong = right.replace(emulators.KEY, SECRET)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", wrong)
    monkeypatch.setattr("fsspec.config.conf", {"az": {"skip_instance_cache": True}})
    client.forget()
    with pytest.raises(
        StorageUnavailable, match=r"cannot write az://.*/x/y: .*failed to authenticate"
    ):
        Storage(az("x"), patience=600).write("y", b"1")
    client.forget()
