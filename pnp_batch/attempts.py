"""Attempts: what was begun and has not ended, so that work which kills its worker is found.

A dead worker tells nothing; but what it had begun and never ended is known here, and is tried
again alone. What still kills its worker then is given up, and its neighbours are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ATTEMPTS = 3


@dataclass(frozen=True)
class Verdict:
    """How to go on with some names.

    Attributes:
        together: never begun; may share a batch.
        alone: begun before and not ended; to be tried one by one.
        last: as `alone`, for the last time.
        killed: has killed its worker in every attempt.
        expired: took too long although it was alone.
    """

    together: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    killed: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()


class Attempts:
    """Counts how often each name was begun without an end."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._expired: set[str] = set()

    def begin(self, names: Iterable[str]) -> None:
        """These are begun now, together."""
        self._begun.update(names)

    def end(self, names: Iterable[str]) -> None:
        """These have ended, well or with an error of their own."""
        for name in names:
            self._begun.pop(name, None)

    def expire(self, names: Sequence[str]) -> None:
        """These took too long together; who was alone is to blame."""
        if len(names) == 1:
            self._expired.update(names)

    @property
    def unended(self) -> list[str]:
        """What was begun, has not ended and is not given up, the oldest first."""
        return [name for name in self._begun if self._class(name) in ("alone", "last")]

    def verdict(self, names: Iterable[str]) -> Verdict:
        """How to go on with these."""
        sorted_out: dict[str, list[str]] = {}
        for name in names:
            sorted_out.setdefault(self._class(name), []).append(name)
        return Verdict(**{kind: tuple(found) for kind, found in sorted_out.items()})

    def _class(self, name: str) -> str:
        begun = self._begun.get(name, 0)
        if name in self._expired:
            return "expired"
        if begun >= ATTEMPTS:
            return "killed"
        return "together" if not begun else "last" if begun == ATTEMPTS - 1 else "alone"
