"""Everything that can go wrong, in two kinds: `JobError` ends a job, `RowError` ends one row.

A `JobError` carries the exit code and the hint that the command line prints; a `RowError` carries
the `error_type` that the results record. Nothing here imports anything of the package.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_OK = 0
EXIT_BROKEN = 1
EXIT_USAGE = 2
EXIT_TOO_MANY_FAILED = 3
EXIT_INVALID = 4
EXIT_INTERRUPTED = 130


class JobError(Exception):
    """Ends the job. `hint` is what the user can do next; `exit_code` what the process returns."""

    exit_code = EXIT_BROKEN

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class WrongUsage(JobError):
    """A command that lacks what it cannot do without."""

    exit_code = EXIT_USAGE


class InvalidConfig(JobError):
    """A configuration value, file or environment variable that cannot be used."""

    exit_code = EXIT_INVALID


class InvalidManifest(JobError):
    """A manifest that is refused before any model is loaded."""

    exit_code = EXIT_INVALID


class InvalidModel(JobError):
    """A model that is missing, truncated, or has no place for Plug-and-Play features."""

    exit_code = EXIT_INVALID


class OutputMismatch(JobError):
    """An output that was made with another configuration, or from other rows."""

    exit_code = EXIT_INVALID


class RowError(Exception):
    """Ends one row. The class name is the row's `error_type`; the message its `error_message`."""


class ImageNotFound(RowError):
    """The image URI names nothing."""


class ImageForbidden(RowError):
    """The image URI is outside the allowed roots, schemes and hosts."""


class ImageUndecodable(RowError):
    """The bytes are no picture that can be decoded."""


class ImageTooLarge(RowError):
    """More bytes or pixels than the limits allow."""


class InvalidRow(RowError):
    """A null or empty prompt, or an override that is out of range."""


class OutOfMemory(RowError):
    """The device has too little memory even for this row alone."""


class RowTimeout(RowError):
    """Reading or translating the row took longer than its limit."""


class StorageError(RowError):
    """The storage failed while the row was read or written."""


class ModelError(RowError):
    """The model produced something that is no picture."""


ROW_ERRORS: dict[str, type[RowError]] = {
    kind.__name__: kind
    for kind in (
        ImageNotFound,
        ImageForbidden,
        ImageUndecodable,
        ImageTooLarge,
        InvalidRow,
        OutOfMemory,
        RowTimeout,
        StorageError,
        ModelError,
    )
}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `did you mean 'x'?` for the nearest known word, or all known words."""
    words = sorted(known)
    near = get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(words)
