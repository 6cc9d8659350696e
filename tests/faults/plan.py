"""What the fault proxy does to which request: a declared plan, and the record of what was done."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from urllib.parse import unquote, urlsplit


class Kind(StrEnum):
    """What a fault does to a request."""

    RESET = "reset"  # never forwarded, the connection is reset
    LOST = "lost"  # forwarded and done, the connection is reset instead of the answer
    TRUNCATED = "truncated"  # the answer to a GET ends after half its body
    FLIPPED = "flipped"  # one bit in the middle of the answer to a GET is wrong
    SLOW_DOWN = "slow down"  # never forwarded, 503 SlowDown
    ERROR = "error"  # never forwarded, 500 InternalError
    HANG = "hang"  # never forwarded, never answered
    LATE = "late"  # forwarded `seconds` later
    OUTAGE = "outage"  # every request is reset, and so is what waits for its answer


HARMS_A_BODY = (Kind.TRUNCATED, Kind.FLIPPED)


@dataclass(frozen=True)
class Fault:
    """One fault of a plan. A request meets it when all that is given here holds.

    Attributes:
        kind: what happens. A kind that harms a body meets successful answers to GET only.
        method: such as `PUT`; `*` is any.
        path: glob on the decoded path, `/bucket/key`.
        query: glob on the query string, such as `*uploadId=*`.
        calls: of the requests that match so far, counted from 1, these; empty for all.
        share: the probability for each matching request, drawn from `seed`.
        between: seconds since the plan was set, from and to.
        seconds: the delay of `Kind.LATE`.
    """

    kind: Kind
    method: str = "*"
    path: str = "*"
    query: str = "*"
    calls: Collection[int] = ()
    share: float = 1.0
    seed: int = 0
    between: tuple[float, float] = (0.0, float("inf"))
    seconds: float = 0.0

    def matches(self, method: str, target: str) -> bool:
        """Whether it is about such requests; `target` is path and query as sent."""
        parts = urlsplit(target)
        return (
            self.method in ("*", method)
            and (self.kind not in HARMS_A_BODY or method == "GET")
            and fnmatchcase(unquote(parts.path), self.path)
            and fnmatchcase(parts.query, self.query)
        )


@dataclass(frozen=True)
class Record:
    """One request as it went.

    Attributes:
        status: what the client was told, None when it was told nothing.
        faults: those that did something to it.
    """

    method: str
    path: str
    query: str
    status: int | None
    faults: tuple[Kind, ...]


class Plan:
    """Faults and what they have counted and drawn; every method may be called from any thread."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self._faults = tuple(faults)
        self._begun = time.monotonic()
        self._seen = [0] * len(self._faults)
        self._draws = [random.Random(fault.seed) for fault in self._faults]
        self._lock = threading.Lock()

    def meets(self, method: str, target: str) -> list[Fault]:
        """The faults that a request meets: all delays, and the first of the others."""
        met: list[Fault] = []
        with self._lock:
            for k, fault in enumerate(self._faults):
                if not fault.matches(method, target):
                    continue
                self._seen[k] += 1
                called = not fault.calls or self._seen[k] in fault.calls
                drawn = self._draws[k].random() < fault.share
                if called and drawn and self._now(fault):
                    met.append(fault)
        harms = [fault for fault in met if fault.kind != Kind.LATE]
        return [fault for fault in met if fault.kind == Kind.LATE] + harms[:1]

    def is_out(self, method: str, target: str) -> bool:
        """Whether an outage keeps back the answer to such a request now."""
        outages = [fault for fault in self._faults if fault.kind == Kind.OUTAGE]
        return any(self._now(fault) and fault.matches(method, target) for fault in outages)

    def _now(self, fault: Fault) -> bool:
        return fault.between[0] <= time.monotonic() - self._begun < fault.between[1]
