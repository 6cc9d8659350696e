"""Evaluation: a guidance image, its translation and their prompts in; scores, or why not, out.

`judge` holds the metrics, one family a file; what the columns mean stands in `pnp_batch.scores`.
"""

from pnp_batch.evaluation.judge import FAMILIES, Judge, Measures, Named, measures
from pnp_batch.evaluation.mask import mask_of
from pnp_batch.evaluation.pair import Found, NotScored, Pair

__all__ = [
    "FAMILIES",
    "Found",
    "Judge",
    "Measures",
    "Named",
    "NotScored",
    "Pair",
    "mask_of",
    "measures",
]
