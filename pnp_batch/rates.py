"""Rates: how fast a worker has computed, measured by runs, for the plans of others.

In: the record of a run. Out: TFLOP/s of one of its workers, kept on this machine by model, device
and number format.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pnp_batch import atomic, record
from pnp_batch.errors import InvalidConfig
from pnp_batch.record import Record

MEASURED, KEPT = "measured", "kept"
NAME = "rates.json"
MOST = 200


@dataclass(frozen=True)
class Rate:
    """What each worker of a run has achieved, its start and its waiting included.

    Attributes:
        model_digest, device, dtype: what it was measured with.
        accelerator: the device by its own name.
        tflops: TFLOP/s of one worker.
        workers: that the run had.
        at: when it was measured.
        source: where the number is from, `measured` or `kept`.
    """

    model_digest: str
    device: str
    dtype: str
    accelerator: str
    tflops: float
    workers: int
    at: str
    source: str = MEASURED

    def __str__(self) -> str:
        return f"{self.accelerator}, {self.dtype}, {self.at[:10]}"


def of_record(there: Record) -> Rate | None:
    """The rate of the latest run of an output; None if it has computed nothing."""
    seconds, tflop = (float(there.counts.get(name, 0.0)) for name in ("worker_seconds", "tflop"))
    if not seconds or not tflop:
        return None
    settings = there.settings
    return Rate(
        model_digest=str(settings.get("model_digest")),
        device=str(settings.get("device")),
        dtype=str(settings.get("dtype")),
        accelerator=there.accelerator,
        tflops=tflop / seconds,
        workers=there.workers,
        at=there.updated_at,
    )


def of_output(uri: str) -> Rate:
    """The rate of the run at `uri`. Raises `InvalidConfig` if nothing was measured there."""
    found = of_record(record.of_run(uri))
    if found is None:
        raise InvalidConfig(
            f"the run at {uri} has measured no rate", "name an output whose run used a model"
        )
    return found


def kept(model_digest: str, device: str, dtype: str) -> Rate | None:
    """The latest rate that this machine knows of such a model on such a device."""
    wanted = (model_digest, device, dtype)
    found = [one for one in _read() if (one.model_digest, one.device, one.dtype) == wanted]
    return replace(found[-1], source=KEPT) if found else None


def keep(there: Record) -> None:
    """Keeps the rate of a run on this machine, instead of an older one of the same kind.

    What cannot be written is no loss.
    """
    found = of_record(there)
    if found is None:
        return

    def kind(one: Rate) -> tuple[str, ...]:
        return one.model_digest, one.device, one.dtype, one.accelerator

    others = [one for one in _read() if kind(one) != kind(found)]
    told = [asdict(one) for one in [*others, found][-MOST:]]
    with suppress(OSError):
        path = _path()
        atomic.write(path, (json.dumps(told, indent=2) + "\n").encode())


def _read() -> list[Rate]:
    try:
        return [Rate(**one) for one in json.loads(_path().read_text())]
    except (OSError, ValueError, TypeError):
        return []


def _path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pnp-batch" / NAME
