"""Last words: what is told to the user when a run's process ends before it can say anything itself.

Ray ends the process of a run without a word when its own daemons die, and the system does when
memory is short. A shell waits beside the run for its end, and speaks if that came too early.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SCRIPT = 'read -r line || printf "%s\\n" "error: $1" "hint: $2" >&2'


@contextmanager
def last_words(error: str, hint: str) -> Iterator[None]:
    """Tells an error and a hint on standard error if this process dies within the block."""
    if os.name != "posix":
        yield
        return
    # In a session of its own: signals for the run must not end it.
    shell = subprocess.Popen(
        ["/bin/sh", "-c", SCRIPT, "sh", error, hint], stdin=subprocess.PIPE, start_new_session=True
    )
    assert shell.stdin is not None
    try:
        yield
    finally:
        with suppress(OSError):
            shell.stdin.write(b"\n")
            shell.stdin.close()
        shell.wait()
