"""Decoding under watch: a file's bytes go to a process with limits, what became of them comes back.

The process may die, hang or grow; the watcher says so, and starts another one for the next file.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from pnp_batch.errors import ImageTooLarge, ImageUndecodable
from pnp_batch.source import SourcePolicy, decode, prepare

RESOLUTION = 32
ADDRESS_SPACE = 6 * 2**30
HANGS = 120.0  # seconds of the clock on the wall, which a busy machine stretches

PICTURE, UNDECODABLE, TOO_LARGE, WRONG = "picture", "undecodable", "too large", "wrong"


@dataclass(frozen=True)
class Limits:
    """What a file may have: pixels, seconds of processor time, MiB that the process grows by."""

    pixels: int = 50_000_000
    seconds: float = 20.0
    mib: float = 1536.0


# Small mutations must cost little; what strangers really send has the limits of a default job.
SMALL = Limits(pixels=1_000_000, seconds=5.0, mib=64.0)


@dataclass(frozen=True)
class Outcome:
    """What became of a file. `detail` says what is wrong, or what the row's error would say."""

    kind: str
    detail: str = ""
    seconds: float = 0.0
    mib: float = 0.0


class Watched:
    """A process that decodes. Use it in a `with` block."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._context = multiprocessing.get_context("spawn")

    def __enter__(self) -> Watched:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def pid(self) -> int | None:
        """Of the process that decodes now."""
        return self._process.pid

    def judge(self, data: bytes) -> Outcome:
        """Decodes and prepares the bytes over there, and holds what happens to the limits."""
        try:
            self._wire.send_bytes(data)
            answered = self._wire.poll(HANGS)
            outcome: Outcome = self._wire.recv() if answered else Outcome(WRONG, "hangs")
        except (EOFError, ConnectionError):
            self._process.join(HANGS)
            outcome = Outcome(WRONG, f"the process died: {self._process.exitcode}")
        if outcome.kind == WRONG:
            self._end()
            self._start()
            return outcome
        if outcome.seconds > self._limits.seconds or outcome.mib > self._limits.mib:
            return Outcome(WRONG, "costs too much", outcome.seconds, outcome.mib)
        return outcome

    def _start(self) -> None:
        self._wire, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=_serve, args=(theirs, self._limits), daemon=True
        )
        self._process.start()
        theirs.close()

    def _end(self) -> None:
        self._wire.close()  # which ends the process, unless it hangs
        self._process.join(1)
        self._process.kill()
        self._process.join()


def _serve(wire: Connection, limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff talks
    warnings.simplefilter("error")
    policy = SourcePolicy(base=".", max_pixels=limits.pixels)
    _outcome(b"", policy)  # loads the decoders
    before = _peak_mib()
    with suppress(EOFError):
        while True:
            data = wire.recv_bytes()
            _forget_peak()
            began = time.process_time()
            kind, detail = _outcome(data, policy)
            seconds = time.process_time() - began
            wire.send(Outcome(kind, detail, seconds, max(0.0, _peak_mib() - before)))


def _outcome(data: bytes, policy: SourcePolicy) -> tuple[str, str]:
    try:
        decoded = decode(data, policy)
        image = prepare(decoded, RESOLUTION, "crop")
    except ImageTooLarge as error:
        kind, detail = TOO_LARGE, str(error)
    except ImageUndecodable as error:
        kind, detail = UNDECODABLE, str(error)
    except BaseException as error:  # noqa: BLE001 - that there is any other is what is looked for
        return WRONG, f"raises {type(error).__name__}: {error}"
    else:
        right = (image.mode, image.size, image.info) == ("RGB", (RESOLUTION, RESOLUTION), {})
        right = right and decoded.width * decoded.height <= policy.max_pixels
        return (PICTURE, "") if right else (WRONG, f"is {image.mode} {image.size} {image.info}")
    if not detail.isprintable() or len(detail) > 1000:
        return WRONG, f"says {detail!r}"
    return kind, detail


def _forget_peak() -> None:
    with suppress(OSError):  # where it cannot be forgotten, the largest file stands for all
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )
