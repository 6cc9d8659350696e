"""Workers that ask for a GPU get the same blocks as those that do not."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.pipeline.conftest import Jobs


def test_a_run_and_its_scores_reach_workers_that_ask_for_a_gpu(jobs: Jobs) -> None:
    for number in range(5):
        jobs.picture(f"{number}.png", number)
    rows = [{"image": f"{n % 5}.png", "prompt": f"prompt {n}"} for n in range(11)]
    paths = str(jobs.model), jobs.manifest(rows), str(jobs.folder / "output")
    command = [sys.executable, "-m", "tests.pipeline.on_gpus", *paths]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == {"done": 11, "scored": 11, "without": 0}
