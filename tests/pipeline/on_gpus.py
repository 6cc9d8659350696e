"""Runs a job and scores it on a Ray that is told of a GPU, each worker with half of it.

The model and the networks stay on the CPU: what is tried is how blocks come to workers that ask for
a GPU. In: a model, a manifest and an output. Out: on standard output, as JSON, how many rows are
done, scored, and without a score.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import ray

from pnp_batch import cluster, evaluate, pipeline, results, scoring
from pnp_batch.config import RunConfig
from pnp_batch.storage import Storage

HALF = 0.5


def main(model: str, manifest: str, output: str) -> None:
    """Runs and scores."""
    settle, score = pipeline.resources, scoring.Evaluation

    def with_gpu(job: Any) -> Any:
        return replace(settle(job), gpus_per_worker=HALF)

    def scoring_with_gpu(work: Any, unscored: Any, workers: int, gpus: float) -> Any:
        return score(work, unscored, workers, HALF)

    pipeline.resources = with_gpu  # type: ignore[assignment]
    evaluate.Evaluation = scoring_with_gpu  # type: ignore[assignment, misc]
    with cluster.unobserved():
        ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False)
    with cluster.connected(None):
        job = RunConfig(manifest, output, model=model, steps=2, device="cpu", workers=2)
        done = pipeline.run(job).summary.done
        scored = evaluate.evaluate(output, evaluate.Settings(("pixels",), device="cpu")).scored
    rows = results.read(Storage(output), ["psnr"])["psnr"].null_count
    sys.stdout.write(json.dumps({"done": done, "scored": scored, "without": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
