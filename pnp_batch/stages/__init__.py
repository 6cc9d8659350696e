"""The stages of a run as Ray Data sees them: load, translate, write. Arrow tables in and out.

Each is a thin adapter around a floor below that knows nothing of Ray. Only the actors that
translate import torch, and only once a row needs it.
"""

from pnp_batch.stages.load import loading
from pnp_batch.stages.score import Score, ScoreSink, Scoring
from pnp_batch.stages.translate import Translate
from pnp_batch.stages.work import PARTS, Reading, Work
from pnp_batch.stages.write import Sink

__all__ = [
    "PARTS",
    "Reading",
    "Score",
    "ScoreSink",
    "Scoring",
    "Sink",
    "Translate",
    "Work",
    "loading",
]
