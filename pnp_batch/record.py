"""`run.json`: what an output was made with and how far it is, replaced whole at every change."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from pnp_batch.clock import now
from pnp_batch.config import RunConfig, fingerprint
from pnp_batch.errors import InvalidConfig, OutputMismatch
from pnp_batch.storage import Storage, StorageUnavailable

NAME = "run.json"
RUNNING, DONE, INTERRUPTED, STOPPED, BROKEN = "running", "done", "interrupted", "stopped", "broken"
SPENT = "spent"  # the budget, before all rows were done
REPORTED = ("pnp-batch", "torch", "diffusers", "transformers", "ray", "pyarrow", "pillow")


@dataclass(frozen=True)
class Record:
    """The content of `run.json`.

    Attributes:
        config: the configuration as it was asked for; `retry` runs it again.
        settings: what shaped the pictures, resolved, and the model's digest.
        rows: rows that the manifest asks for.
        done, failed: rows recorded so far, as of `updated_at`; the results know better.
        session_done: rows recorded by the latest run alone, which its rate is made of.
        counts: of that run: inversions, and the seconds and TFLOP of its workers.
        workers, accelerator: that it had, the latter by its own name.
        worker_seconds: that workers were there in all runs of the output, which are paid for.
    """

    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: int
    state: str = RUNNING
    done: int = 0
    failed: int = 0
    session_done: int = 0
    started_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)
    finished_at: str | None = None
    counts: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1
    accelerator: str = ""
    worker_seconds: float = 0.0

    @property
    def fingerprint(self) -> str:
        """A short hash of `settings`."""
        return fingerprint(self.settings)

    def as_config(self, output: str) -> RunConfig:
        """The job as it was asked for, with its output where it is found now."""
        return RunConfig(**{**self.config, "output": output})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a run."""
    return {"python": platform.python_version(), **{name: version(name) for name in REPORTED}}


def read(storage: Storage) -> Record | None:
    """The record of an output, or None when there is none.

    Raises:
        StorageUnavailable: `run.json` is there but is none of ours.
    """
    data = storage.read_if_there(NAME)
    if data is None:
        return None
    try:
        loaded = json.loads(data)
        loaded.pop("fingerprint")
        return Record(**loaded)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StorageUnavailable(
            f"{storage.uri}/{NAME} is not a run record of this version: {error}",
            "use another --output, or delete that file if the folder is no output",
        ) from error


def of_run(uri: str) -> Record:
    """The record of the run at `uri`. Raises `InvalidConfig` if there is none."""
    there = read(Storage(uri))
    if there is None:
        raise InvalidConfig(f"{uri} holds no run.json", "give the --output of an earlier run")
    return there


def write(storage: Storage, record: Record) -> None:
    """Replaces the record of an output atomically."""
    body = {**asdict(record), "fingerprint": record.fingerprint}
    storage.write(NAME, (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode())


def refuse_other(
    storage: Storage, settings: Mapping[str, Any], ignore: tuple[str, ...] = ()
) -> Record | None:
    """Refuses to mix pictures of two configurations in one output.

    Returns:
        The record that is there.

    Raises:
        OutputMismatch: with the list of what differs.
    """
    there = read(storage)
    if there is None:
        return None
    differing = [
        f"{name}: {there.settings.get(name)!r} there, {settings.get(name)!r} now"
        for name in sorted({*settings, *there.settings} - set(ignore))
        if settings.get(name) != there.settings.get(name)
    ]
    if differing:
        raise OutputMismatch(
            f"{storage.uri} was made with another configuration ({'; '.join(differing)})",
            "use another --output, or the configuration in its run.json",
        )
    return there
