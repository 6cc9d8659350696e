"""The suite's ground: a process environment that reaches no network and no one's settings, and a
real S3 server on this machine.

The environment is set while pytest loads this file, before any test module imports torch, Ray or
botocore.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# What a machine remembers, such as how fast it is, no test may find.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="pnp-batch-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
S3_BUCKET = "pnp-batch-tests"
S3_ENDPOINT = f"http://127.0.0.1:{_free_port()}"

for name in [name for name in os.environ if name.startswith(("PNP_BATCH_", "AWS_", "RAY_"))]:
    del os.environ[name]  # a developer's own settings must not decide what a test sees
os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",  # where a test has more threads, they do not spin on a busy machine
    RAY_USAGE_STATS_ENABLED="0",
    # The S3 server's address is set from the start, so that Ray workers know it whichever fixture
    # comes first, and so that no test can reach a real bucket by mistake.
    AWS_ENDPOINT_URL=S3_ENDPOINT,
    AWS_ENDPOINT_URL_S3=S3_ENDPOINT,
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_REGION="us-east-1",
    AWS_EC2_METADATA_DISABLED="true",
    AWS_CONFIG_FILE=os.devnull,
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
)

import torch  # noqa: E402 - it reads OMP_NUM_THREADS while it is imported

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Run an S3 server process with one bucket; yields `uri(prefix)`, which names a place in it.

    Child processes and Ray workers find the server through the environment, as this process does.
    Tests share the bucket: each uses a prefix of its own.
    """
    import s3fs

    log = tmp_path_factory.mktemp("s3") / "server.log"
    port = S3_ENDPOINT.rpartition(":")[2]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_answers(server, log)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(S3_BUCKET)
        yield lambda prefix: f"s3://{S3_BUCKET}/{prefix}"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.terminate()
        server.wait(timeout=10)


def _wait_until_it_answers(server: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{S3_ENDPOINT}/moto-api/", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"the S3 server at {S3_ENDPOINT} did not start:\n{log.read_text()}")
