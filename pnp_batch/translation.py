"""The graph of a run: prepared rows in, images and results on storage.

blocks to do -> load (CPU tasks) -> Translate (actors with the model) -> Sink (images, results)
"""

from __future__ import annotations

from typing import Any

import ray
from ray.data import ActorPoolStrategy

from pnp_batch.batches import cuts, ordered
from pnp_batch.job import Job
from pnp_batch.listing import Blocks
from pnp_batch.resources import Resources
from pnp_batch.stages import Sink, Translate, Work, loading

BLOCKS_A_WORKER = 8
# What a crash may cost is a block: few rows where each takes the model, more where none does.
LARGEST_BLOCK, LARGEST_MODEL_BLOCK = 256, 16
LARGEST_BYTES = 32 * 2**20  # of a block's pixels


class Translation:
    """Translates what a job has to do."""

    doing = "translating"

    def __init__(self, job: Job, work: Work, on: Resources) -> None:
        self._job = job
        self._work = work
        self._on = on
        self.workers = on.most_workers
        self._needs_model = job.needs_model
        self.metrics = job.output.uri, len(job.todo)

    def blocks(self) -> Blocks:
        """The rows to do in the order and the blocks in which they are done."""
        job, pixels = self._job, 3 * self._work.reading.resolution**2
        largest = LARGEST_MODEL_BLOCK if self._needs_model else LARGEST_BLOCK
        largest = max(1, min(largest, LARGEST_BYTES // pixels))
        todo, image = job.todo, job.listing.guidance
        todo = todo[ordered(image[todo], job.places.share[todo])]
        places = job.places.of(todo)
        least = self._on.most_workers * BLOCKS_A_WORKER
        wanted = max(least, len(todo) // largest)
        # A batch without a model is not worth waiting for.
        workers = self._on.most_workers if self._needs_model else 1
        together = places.images * places.ahead
        ends = cuts(image[todo], places.share, together, wanted, workers)
        return Blocks(job.listing.file.path, todo, places, ends)

    def run(self, data: ray.data.Dataset, control: Any, count: int) -> None:  # noqa: ANN401
        """Translates the blocks that `data` numbers, so many."""
        # Ray restarts a dead actor and repeats its block for ever: `attempts` ends that.
        data = loading(data, self._work.reading, control).map_batches(
            Translate,
            fn_constructor_kwargs={
                "work": self._work,
                "control": control,
                "preload": self._needs_model,
            },
            batch_format="pyarrow",
            batch_size=1,
            compute=ActorPoolStrategy(
                min_size=min(self._on.workers, count),
                max_size=min(self._on.most_workers, count),
                # Else the first actor that is ready takes blocks that others could begin at once.
                max_tasks_in_flight_per_actor=1 if self._needs_model else None,
            ),
            num_cpus=1,
            num_gpus=self._on.gpus_per_worker or None,
        )
        data.write_datasink(Sink(self._work, control), ray_remote_args={"num_cpus": 0.5})
