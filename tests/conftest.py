"""The suite's ground: a process environment that reaches no network and no one's settings, and
real object stores on this machine.

The environment is set while pytest loads this file, before any test module imports torch, Ray or
botocore.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator

import pytest

from tests import emulators


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# What a machine remembers, such as how fast it is, no test may find.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="pnp-batch-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
BUCKET = "pnp-batch-tests"
S3_ENDPOINT = f"http://127.0.0.1:{_free_port()}"
GS_ENDPOINT = f"http://127.0.0.1:{_free_port()}"
AZ_ENDPOINT = f"http://127.0.0.1:{_free_port()}/{emulators.ACCOUNT}"

OTHERS = ("PNP_BATCH_", "AWS_", "RAY_", "AZURE_", "GOOGLE_", "GCSFS_", "FSSPEC_")
for name in [name for name in os.environ if name.startswith(OTHERS)]:
    del os.environ[name]  # a developer's own settings must not decide what a test sees
os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",  # where a test has more threads, they do not spin on a busy machine
    RAY_USAGE_STATS_ENABLED="0",
    # The stores' addresses are set from the start, so that Ray workers know them whichever fixture
    # comes first, and so that no test can reach a real bucket by mistake.
    STORAGE_EMULATOR_HOST=GS_ENDPOINT,
    AZURE_STORAGE_CONNECTION_STRING=emulators.connection_string(AZ_ENDPOINT),
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


Place = Callable[[str], str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: in the end, one of them would leave other cores idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Run an S3 server process with one bucket; yields `uri(prefix)`, which names a place in it.

    Child processes and Ray workers find the server through the environment, as this process does.
    Tests share the bucket: each uses a prefix of its own. `gs` and `az` are alike.
    """
    with emulators.s3(S3_ENDPOINT, tmp_path_factory.mktemp("s3")):
        yield _bucket("s3")


@pytest.fixture(scope="session")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Google Cloud Storage, as `s3`."""
    with emulators.gs(GS_ENDPOINT, tmp_path_factory.mktemp("gs")):
        yield _bucket("gs")


@pytest.fixture(scope="session")
def az(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Azure Blob Storage, as `s3`."""
    with emulators.az(AZ_ENDPOINT, tmp_path_factory.mktemp("az")):
        yield _bucket("az")


def _bucket(scheme: str) -> Place:
    from pnp_batch.client import client  # whose modules read the environment, too

    client(f"{scheme}://{BUCKET}")[0].mkdir(BUCKET)
    return lambda prefix: f"{scheme}://{BUCKET}/{prefix}"
