"""Last words: a process that ends too early is spoken for, one that ends well is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
from pnp_batch.cli.last_words import last_words
with last_words("it's gone", "go `on`"):
    {end}
"""
TOLD = ["error: it's gone", "hint: go `on`"]


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", TOLD),
        ("os._exit(1)", TOLD),  # what Ray does when its node process has died
        ("os.killpg(0, signal.SIGINT)", None),  # Ctrl-C reaches the whole group
        ("sys.exit(3)", []),
        ("pass", []),
    ],
)
def test_only_a_death_is_spoken_of(end, told):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(end=end)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        start_new_session=True,
        timeout=60,
    )
    if told is None:
        assert "it's gone" not in done.stderr
    else:
        assert done.stderr.splitlines() == told
