"""hf:// URIs: images and manifests on a Hugging Face hub, here a server that answers as it does."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.pictures import PNG

if TYPE_CHECKING:
    from collections.abc import Iterator

REPO = "datasets/owner/sketches"
ROWS = [{"image": "images/cat.png", "prompt": "a cat"}, {"image": "no.png", "prompt": "nothing"}]
FILES = {
    "images/cat.png": PNG,
    "images/dog.png": PNG,
    "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers of one public dataset: what it is, what it holds, and its files."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        begun = f"api/{REPO}"
        tree, file = f"{begun}/tree/main", f"{REPO}/resolve/main/"
        if path in (begun, f"{begun}/revision/main"):
            self._answer(200, {"id": "owner/sketches", "sha": "0" * 40, "siblings": []})
        elif path == tree or path.startswith(f"{tree}/"):
            below = path.removeprefix(tree).strip("/")
            found = list(self._entries(below, "recursive=true" in self.path.lower()))
            self._answer(200 if found else 404, found, "EntryNotFound")
        elif path.startswith(file) and path.removeprefix(file) in FILES:
            self._send(FILES[path.removeprefix(file)])
        else:
            self._answer(404, {}, "EntryNotFound" if begun in path else "RepoNotFound")

    def _entries(self, below: str, recursive: bool) -> Iterator[dict[str, Any]]:
        prefix, folders = f"{below}/" if below else "", set()
        for path, data in FILES.items():
            inside = path.removeprefix(prefix)
            if not path.startswith(prefix):
                continue
            if "/" in inside and (folder := prefix + inside.partition("/")[0]) not in folders:
                folders.add(folder)
                yield {"type": "directory", "oid": "1" * 40, "size": 0, "path": folder}
            if recursive or "/" not in inside:
                yield {"type": "file", "oid": "2" * 40, "size": len(data), "path": path}

    def _send(self, data: bytes) -> None:
        told = self.headers.get("Range")
        if told:
            start, end = (int(number) for number in told.removeprefix("bytes=").split("-"))
            data = data[start : end + 1]
        self.send_response(206 if told else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, status: int, body: object, error: str = "") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status != 200:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def hub() -> Iterator[dict[str, str]]:
    """The environment of a process that takes this machine's hub for the real one."""
    with serving() as endpoint:
        own = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        yield {**os.environ, **own}


def call(environ: dict[str, str], *arguments: str) -> dict[str, Any]:
    """What a command answers, in a process of its own: the hub's address is read at the start."""
    command = [sys.executable, "-m", "pnp_batch", *arguments, "--json"]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_manifest_of_a_dataset_names_images_that_are_read(hub, tmp_path):
    output = str(tmp_path / "m.jsonl")
    made = call(hub, "manifest", "hf", f"hf://{REPO}", "--prompt", "x", "--output", output)
    assert (made["rows"], made["images"]) == (2, 2)
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert rows[0]["image"] == f"hf://{REPO}/images/cat.png"
    assert call(hub, "validate", output, "--images")["bad"] == []


def test_a_manifest_may_lie_beside_its_images(hub):
    found = call(hub, "validate", f"hf://{REPO}/rows.jsonl", "--images")
    assert [bad["error_type"] for bad in found["bad"]] == ["ImageNotFound"]
