"""A translation method with an illness: rows that kill, stall or break the worker that has them.

In: the guidance scale of each row in a batch, which says what to do, and the environment. Out:
Plug-and-Play's translation, and a line for each batch that was begun. Installed as a plug-in.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pnp_batch.methods.pnp import PlugAndPlay

if TYPE_CHECKING:
    import torch

    from pnp_batch.methods import Batch

ROOT = Path(__file__).parents[2]
# Scales of 700 and more kill, and so on; each row has one of its own, to be counted.
KILLS, HANGS, RAISES = 700, 800, 900
NOTES, PAUSE = "FAULTS_NOTES", "FAULTS_PAUSE"
FOR_EVER = 3600.0


class Ill(PlugAndPlay):
    """Plug-and-Play that notes what it begins and obeys the scales above."""

    name = "ill"

    def translate(self, batch: Batch) -> torch.Tensor:
        """Notes the batch, pauses, and kills, hangs, raises or translates."""
        scales = sorted({float(scale) for scale in batch.prompts.scale})
        with Path(os.environ[NOTES]).open("a") as notes:
            notes.write(json.dumps(scales) + "\n")
        time.sleep(float(os.environ.get(PAUSE, "0")))
        kinds = {int(scale) // 100 * 100 for scale in scales}
        if KILLS in kinds:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGS in kinds:
            time.sleep(FOR_EVER)
        if RAISES in kinds:
            raise ArithmeticError("this row breaks its method")
        return super().translate(batch)


def installed(folder: Path, pause: float = 0.0) -> dict[str, str]:
    """Makes `ill` a method of runs with this environment; `folder` gets the plug-in and notes.

    Args:
        folder: of the plug-in and its notes.
        pause: seconds before each batch.
    """
    package = folder / "ill-1.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: ill\nVersion: 1\n")
    entry = "[pnp_batch.methods]\nill = tests.faults.ill:Ill\n"
    (package / "entry_points.txt").write_text(entry)
    paths = [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    notes = str(folder / "notes.jsonl")
    return {"PYTHONPATH": os.pathsep.join(paths), NOTES: notes, PAUSE: str(pause)}


def begun(folder: Path) -> list[list[float]]:
    """The scales of every batch that was begun, in order."""
    notes = folder / "notes.jsonl"
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
