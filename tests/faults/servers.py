"""Real S3 servers as processes of their own on 127.0.0.1, each with credentials and one bucket.

moto starts at once and checks neither digests nor credentials. SeaweedFS takes seconds, checks
both, and keeps what it acknowledged through `kill -9`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from collections.abc import Iterator

REGION = "us-east-1"
START_SECONDS = 180.0  # a busy machine with few cores takes its time


@dataclass(frozen=True)
class Store:
    """A bucket of an S3 server and how to reach it, at the server or through a proxy."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str

    def at(self, endpoint: str) -> Store:
        """The same bucket by another way, such as a proxy."""
        return Store(endpoint, self.access_key, self.secret_key, self.bucket)

    def uri(self, prefix: str) -> str:
        """A place in the bucket."""
        return f"s3://{self.bucket}/{prefix}"

    def client(self, seconds: float = 60, attempts: int = 1) -> Any:
        """A boto3 client; by default one that asks once and checks no answer, so that faults show.

        Args:
            seconds: the longest silence before it gives up.
            attempts: how often it asks in all.
        """
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(
                connect_timeout=seconds,
                read_timeout=seconds,
                retries={"total_max_attempts": attempts},
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def environ(self) -> dict[str, str]:
        """What points the S3 clients of a child process here: fsspec, pyarrow and boto3."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


class Server:
    """A server process that can be killed and started again on the same data."""

    def __init__(self, command: list[str], folder: Path, store: Store) -> None:
        self.store = store
        self.log = folder / "server.log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts the process and returns once the bucket answers."""
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                self._command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self._command[0]} did not start: {self.log.read_text()}")
            time.sleep(0.1)

    def kill(self) -> None:
        """`kill -9`; returns when the process is gone."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def restart(self) -> None:
        """Kills the process if it lives, and starts it again on the same data."""
        self.kill()
        self.start()

    def _answers(self) -> bool:
        """Makes the bucket where it is missing, and writes to it: true only when all parts work."""
        client = self.store.client(seconds=5)
        try:
            names = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
            if self.store.bucket not in names:
                client.create_bucket(Bucket=self.store.bucket)
            client.put_object(Bucket=self.store.bucket, Key="started", Body=b"1")
            client.delete_object(Bucket=self.store.bucket, Key="started")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True


@contextmanager
def moto() -> Iterator[Server]:
    """A moto server. It keeps everything in memory: a restart begins with an empty bucket."""
    (port,) = free_ports(1)
    store = Store(f"http://127.0.0.1:{port}", "testing", "testing", "faults")
    with tempfile.TemporaryDirectory(prefix="pnp-store-") as folder:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with _running(command, Path(folder), store) as server:
            yield server


@contextmanager
def seaweedfs() -> Iterator[Server]:
    """A SeaweedFS server with its data in a temporary folder."""
    ports = free_ports(8)
    store = Store(f"http://127.0.0.1:{ports[0]}", "fault-tester", "a secret of tests", "faults")
    flags: dict[str, object] = {"ip": "127.0.0.1", "ip.bind": "127.0.0.1"}
    for k, part in enumerate(("s3", "master", "volume", "filer")):
        flags |= {f"{part}.port": ports[k], f"{part}.port.grpc": ports[k + 4]}
    # No more listeners than that, no calls home, and an election of one that does not take long.
    flags |= {"s3.port.iceberg": 0, "s3.port.lance": 0, "master.telemetry": "false"}
    flags |= {"volume.max": 200, "master.volumeSizeLimitMB": 64, "master.electionTimeout": "1s"}
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
    with tempfile.TemporaryDirectory(prefix="pnp-store-") as folder:
        flags |= {"dir": folder, "s3.config": _identity(store, Path(folder))}
        command = [weed, "server", "-s3", *(f"-{name}={value}" for name, value in flags.items())]
        with _running(command, Path(folder), store) as server:
            yield server


@contextmanager
def _running(command: list[str], folder: Path, store: Store) -> Iterator[Server]:
    server = Server(command, folder, store)
    try:
        yield server
    finally:
        server.kill()


def _identity(store: Store, folder: Path) -> Path:
    """SeaweedFS's file of credentials: with it, what is not rightly signed is refused."""
    key = {"accessKey": store.access_key, "secretKey": store.secret_key}
    identity = {"name": "tests", "credentials": [key], "actions": ["Admin"]}
    path = folder / "identities.json"
    path.write_text(json.dumps({"identities": [identity]}))
    return path


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
