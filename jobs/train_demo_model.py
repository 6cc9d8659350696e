"""Trains the embedded `demo` model from nothing: draws pictures, trains each stage, exports."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import click
import torch.distributed as dist

STAGES = ("data", "encoder", "clip", "decoder", "unet", "export")


@click.command(context_settings={"show_default": True})
@click.argument("stages", nargs=-1, required=True, type=click.Choice([*STAGES, "all"]))
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Pictures, logs and checkpoints."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where 'export' puts the model folder."
)
@click.option("--steps", type=int, help="Steps of the stage instead of the recipe's.")
@click.option(
    "--minutes", type=float, default=math.inf, help="Stop a stage after so much training time."
)
@click.option("--batch", type=int, help="Pictures a step and process instead of the recipe's.")
@click.option("--device", default="cpu", help="cpu or cuda.")
def main(  # noqa: PLR0913, PLR0917 - one parameter for each option
    stages: tuple[str, ...],
    work: Path,
    out: Path | None,
    steps: int | None,
    minutes: float,
    batch: int | None,
    device: str,
) -> None:
    """Run the training STAGES in order; each continues where it stopped.

    Two processes share one stage with `torchrun --nproc-per-node 2 jobs/train_demo_model.py ...`.
    """
    from pnp_batch.training import recipe

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    wanted = STAGES if "all" in stages else stages
    for stage in wanted:
        recipe.run(stage, recipe.Options(work, out, steps, minutes, batch, device))


if __name__ == "__main__":
    main()
