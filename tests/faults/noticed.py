"""Does a check notice? An experiment, or a part of it, with a protection taken out of the package.

In: a mutation of `mutants/sitecustomize.py` and the function that must find something under it.
Out: what that function found, in a process of its own, whose jobs are changed in the same way.

    python -m tests.faults.noticed MODULE:FUNCTION[:ARGUMENT] FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.promise import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
MUTANTS = Path(__file__).parent / "mutants"


@dataclass(frozen=True)
class Check:
    """A protection to take out, and what must notice.

    Attributes:
        mutant: the function in `mutants/sitecustomize.py`.
        check: `module:function` or `module:function:argument` of `tests.faults`; the function takes
            an empty folder, and the argument, and returns an `Outcome`.
        cheap: whether it belongs to every run of the suite; otherwise to the soak alone.
    """

    mutant: str
    check: str
    cheap: bool = False


CHECKS = (
    Check("no_retry", "operations:only:read", cheap=True),
    Check("no_read_back", "operations:only:create", cheap=True),
    Check("failures_are_absences", "operations:only:look", cheap=True),
    Check("results_trusted", "operations:only:read rows", cheap=True),
    Check("torn_write", "storage_calls:replaced", cheap=True),
    Check("torn_write", "full_disk:limited", cheap=True),
    Check("torn_write", "full_disk:output"),
    Check("torn_write", "rotten_cache:killed"),
    Check("no_sweep", "rotten_cache:killed"),
    Check("latents_trusted", "rotten_cache:damaged"),
    Check("no_lease", "many_drivers:one_output"),
    Check("no_retry", "throttling:once"),
    Check("no_retry", "storage_calls:once"),
    Check("record_first", "kills:once"),
    Check("no_padding", "same_bytes:once"),
    Check("no_anti_join", "signals:once"),
    Check("no_drain", "signals:once"),
    Check("no_attempts", "killer_rows:once"),
    Check("environment_recorded", "strangers:once"),
    Check("pixels_in_driver", "many_rows:once"),
)


def outcome(check: str, folder: Path, mutant: str = "", prefix: Sequence[str] = ()) -> Outcome:
    """What a check finds in a process of its own.

    Args:
        check: as in `Check`.
        folder: an empty one for it.
        mutant: the mutation under which it runs; empty for none.
        prefix: what the process is started with, such as `unshare`.
    """
    environ = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        **({"FAULTS_MUTANT": mutant} if mutant else {}),
    }
    paths = [str(MUTANTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ["PYTHONPATH"] = os.pathsep.join(paths)
    command = [*prefix, sys.executable, "-m", "tests.faults.noticed", check, str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{check} did not end:\n{done.stderr}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Outcome(**{**told, "findings": tuple(told["findings"])})


def main(check: str, folder: str) -> None:
    """Runs a check in this process and writes its outcome as JSON."""
    module, function, *arguments = check.split(":")
    found = getattr(import_module(f"tests.faults.{module}"), function)(Path(folder), *arguments)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
