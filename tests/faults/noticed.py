"""Does a check notice? An experiment, or a part of it, with a protection taken out of the package.

In: a mutation of `mutants/sitecustomize.py` and the function that must find something under it.
Out: what that function found, in a process of its own, whose jobs are changed in the same way.

    python -m tests.faults.noticed MODULE:FUNCTION FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from tests.faults.promise import Outcome

ROOT = Path(__file__).parents[2]
MUTANTS = Path(__file__).parent / "mutants"


@dataclass(frozen=True)
class Check:
    """A protection to take out, and what must notice.

    Attributes:
        mutant: the function in `mutants/sitecustomize.py`.
        check: `module:function` of `tests.faults`; the function takes an empty folder and returns
            an `Outcome`.
        cheap: whether it belongs to every run of the suite; otherwise to the soak alone.
    """

    mutant: str
    check: str
    cheap: bool = False


CHECKS = (
    Check("no_retry", "storage_calls:calls", cheap=True),
    Check("no_read_back", "storage_calls:calls", cheap=True),
)


def outcome(check: str, folder: Path, mutant: str = "") -> Outcome:
    """What a check finds; under a mutation if one is named."""
    environ = {**os.environ, "FAULTS_MUTANT": mutant}
    paths = [str(MUTANTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "tests.faults.noticed", check, str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{check} did not end:\n{done.stderr}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Outcome(**{**told, "findings": tuple(told["findings"])})


def main(check: str, folder: str) -> None:
    """Runs a check in this process and writes its outcome as JSON."""
    module, _, function = check.partition(":")
    found = getattr(import_module(f"tests.faults.{module}"), function)(Path(folder))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
