"""The time of a picture here beside the published diffusers code of Plug-and-Play.

Both sides have the same model (on a CPU in float32; on a GPU the published code in float16, as it
asks, and pnp-batch in its default there), the same drawn pictures and prompts, as many torch
threads, and for each measurement a process of their own, one at a time and in turn. Each process
first translates another picture with two steps. What counts begins at the pictures' files and ends
with the translated pictures' files; pnp-batch is called as a library, `Translator.translate`, once
for a single picture with its prompts and once for a batch. Imports and loading the model do not
count; they are told apart, as the published code does both again for each prompt.

published.py says how the published code is run and what it is given to run here. Its options
cannot leave out the reconstruction, which its pnp.py never reads. It is timed apart, and the table
has both: its code as its options allow, and without that time. "Inversions at hand" has its latents
on disk from before, and here the latent cache.

The bound is the ratio of counted FLOPs: of the published code's whole evaluations, and of what
`pnp-batch plan` counts. A ratio of seconds beyond it comes from fewer, larger operations.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import click
from PIL import Image
from published import IMPORTS, LOADING, PARTS, PublishedCode, Stopwatch

from pnp_batch.batches import DEFAULT_BATCH_SIZE
from pnp_batch.bench import work
from pnp_batch.config import RunConfig
from pnp_batch.flops import unet_flops, vae_flops
from pnp_batch.models import find
from pnp_batch.plan import plan
from pnp_batch.record import versions

INVERSION, RECONSTRUCTION, SAMPLING = PARTS
TRANSLATION = "translation"
CASES = (
    ("same steps, as its options allow", PARTS, False),
    ("same steps, without its reconstruction", (INVERSION, SAMPLING), False),
    ("same steps, inversions at hand", (SAMPLING,), True),
)
WARM_UP_STEPS = 2
AT_LEAST_ONE = click.IntRange(min=1)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@dataclass(frozen=True)
class Task:
    """What one process measures.

    Attributes:
        inversion_steps: and of the reconstruction, of the published code.
        images, prompts: guidance images at a time, and prompts of each.
        checkout: of the published code; None for pnp-batch.
        cached: the inversions are at hand, where it is pnp-batch.
    """

    model: str
    threads: int
    steps: int
    inversion_steps: int
    prompts: int = 1
    images: int = 1
    checkout: str | None = None
    cached: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Case:
    """A line of the table, with the parts of the published code that count in it."""

    name: str
    counted: tuple[str, ...]
    published: Task
    alone: Task
    batch: Task


@dataclass(frozen=True)
class Row:
    """What was measured of a case: seconds of a translated picture, medians.

    Attributes:
        alone, batch: pnp-batch with one guidance image, and with `images` of them in a batch.
        bound: counted FLOPs of the published code over those of pnp-batch.
    """

    case: str
    prompts: int
    published: float
    alone: float
    batch: float
    images: int
    bound: float


Measured = Mapping[Task, Sequence[Mapping[str, float]]]


@click.command()
@click.option(
    "--published", "checkout", type=FOLDER, required=True, help="Checkout of pnp-diffusers."
)
@click.option("--model", default="demo", show_default=True, help="`demo` or a model directory.")
@click.option("--steps", default=50, show_default=True, help="Sampling steps; inversion's here.")
@click.option("--published-steps", default=999, show_default=True, help="Its inversion's default.")
@click.option("--prompts", default=(1, 4), show_default=True, multiple=True, help="Of a picture.")
@click.option("--batch-size", default=DEFAULT_BATCH_SIZE, show_default=True, help="Rows, here.")
@click.option("--repeats", type=AT_LEAST_ONE, default=3, show_default=True, help="Of each process.")
@click.option("--threads", type=AT_LEAST_ONE, default=1, show_default=True, help="Of torch.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--cached", is_flag=True, help="Also with the inversions at hand.")
@click.option("--json", "as_json", type=click.File("w"), metavar="FILE", help="Also write JSON.")
def main(checkout: Path, repeats: int, as_json: TextIO | None, **given: Any) -> None:
    """Measure the seconds of a translated picture, here and with the published code."""
    if not (checkout / "preprocess.py").is_file():
        raise click.BadParameter(f"{checkout} holds no preprocess.py", param_hint="--published")
    cases = list(_cases(str(checkout.absolute()), given))
    measured = _measure(cases, repeats)
    rows = [_row(case, measured) for case in cases]
    click.echo("\n".join(_markdown(rows, cases[0], measured)))
    if as_json:
        raw = [{**asdict(task), "seconds": seconds} for task, seconds in measured.items()]
        json.dump({"versions": versions(), "rows": [*map(asdict, rows)], "measured": raw}, as_json)


def _cases(checkout: str, given: Mapping[str, Any]) -> Iterator[Case]:
    """The default beside the default, then the same number of steps on both sides."""
    steps = given["steps"]
    theirs = Task(given["model"], given["threads"], steps, steps, checkout=checkout)
    theirs = replace(theirs, device=given["device"])
    default = replace(theirs, inversion_steps=given["published_steps"])
    yield _case("defaults", PARTS, default, given["batch_size"])
    for name, counted, cached in CASES if given["cached"] else CASES[:2]:
        for prompts in given["prompts"]:
            task = replace(theirs, prompts=prompts)
            yield _case(name, counted, task, given["batch_size"], cached=cached)


def _case(
    name: str, counted: tuple[str, ...], theirs: Task, batch_size: int, *, cached: bool = False
) -> Case:
    alone = replace(theirs, checkout=None, inversion_steps=theirs.steps, cached=cached)
    batch = replace(alone, images=max(1, batch_size // theirs.prompts))
    return Case(name, counted, theirs, alone, batch)


def _measure(cases: Sequence[Case], repeats: int) -> Measured:
    """Runs each distinct task in a process of its own, all of them before any of them again."""
    tasks = (task for case in cases for task in (case.published, case.alone, case.batch))
    found: dict[Task, list[dict[str, float]]] = {task: [] for task in tasks}
    os.environ |= {"OMP_NUM_THREADS": str(cases[0].alone.threads), "TQDM_DISABLE": "1"}
    new = get_context("spawn")
    for repeat in range(repeats):
        for number, task in enumerate(found, 1):
            with ProcessPoolExecutor(1, mp_context=new) as process:
                seconds = process.submit(_seconds, task, repeat).result()
            found[task].append(seconds)
            told = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
            whose = "published" if task.checkout else "pnp-batch"
            click.echo(f"{repeat + 1}.{number} of {len(found)}: {whose}: {told}", err=True)
    return found


def _seconds(task: Task, seed: int) -> dict[str, float]:
    """Measures a task, in the process that is there for it alone."""
    warnings.simplefilter("ignore")  # the published code asks for CUDA's autocast at every step
    watch = Stopwatch()
    with watch.part(IMPORTS):
        import torch
    torch.set_num_threads(task.threads)
    with tempfile.TemporaryDirectory() as name, redirect_stdout(io.StringIO()):
        folder = Path(name)
        paths = [folder / f"{number}.png" for number in range(task.images + 1)]
        for path, picture in zip(paths, work.pictures(len(paths), seed), strict=True):
            picture.save(path)
        run = _run_published if task.checkout else _run_ours
        run(task, folder, paths, watch)
    return dict(watch.seconds)


def _run_published(task: Task, folder: Path, pictures: list[Path], watch: Stopwatch) -> None:
    code = PublishedCode(str(task.checkout), task.model, folder, watch, task.device)
    few = WARM_UP_STEPS
    code.translate(pictures[0], ["warming up"], steps=few, inversion_steps=few)
    for part in (LOADING, *PARTS):
        del watch.seconds[part]
    prompts = work.texts(task.prompts)
    code.translate(pictures[1], prompts, steps=task.steps, inversion_steps=task.inversion_steps)


def _run_ours(task: Task, folder: Path, pictures: list[Path], watch: Stopwatch) -> None:
    with watch.part(IMPORTS):
        from pnp_batch import Translator
        from pnp_batch.diffusion.tuning import tune
    with watch.part(LOADING):
        cache = str(folder / "cache") if task.cached else None
        dtype = "float32" if task.device == "cpu" else "bfloat16"
        translator = Translator.load(task.model, task.device, dtype, cache=cache)
        tune(translator.model, "auto", "fused", compiled=False)

    def translate(paths: list[Path], prompts: list[str], steps: int) -> None:
        shown = [Image.open(path) for path in paths]
        rows = task.images * task.prompts
        made = translator.translate(shown, [prompts] * len(shown), steps=steps, batch_size=rows)
        flat = [image for entry in made if isinstance(entry, list) for image in entry]
        for number, image in enumerate(flat):
            image.save(folder / f"output-{number}.png")

    prompts, chosen = work.texts(task.prompts), pictures[1:]
    others = [f"{prompt}, warming up" for prompt in prompts]
    if task.cached:
        translate(chosen, others, task.steps)
    translate(pictures[:-1], others, WARM_UP_STEPS)
    with watch.part(TRANSLATION):
        translate(chosen, prompts, task.steps)


def _row(case: Case, measured: Measured) -> Row:
    def seconds(task: Task, *parts: str) -> float:
        return _median(measured[task], *parts) / (task.images * task.prompts)

    return Row(
        case=case.name,
        prompts=case.published.prompts,
        published=seconds(case.published, *case.counted),
        alone=seconds(case.alone, TRANSLATION),
        batch=seconds(case.batch, TRANSLATION),
        images=case.batch.images,
        bound=_bound(case),
    )


def _bound(case: Case) -> float:
    """Counted FLOPs of the published code over those of pnp-batch, for a picture's prompts."""
    files, theirs, ours = find(case.published.model), case.published, case.alone
    side = files.resolution
    tokens = int(files.configs["text_encoder"].get("max_position_embeddings", 77))
    full = unet_flops(files.configs["unet"], side // files.scale_factor, tokens).full
    encode, decode = vae_flops(files.configs["vae"], side)
    parts = {
        INVERSION: theirs.inversion_steps * full + encode,
        RECONSTRUCTION: theirs.inversion_steps * full + decode,
        SAMPLING: theirs.prompts * (3 * theirs.steps * full + decode),
    }
    at_hand = ours.steps * full + encode if ours.cached else 0.0
    return sum(parts[name] for name in case.counted) / (_planned(ours) - at_hand)


def _planned(task: Task) -> float:
    """FLOPs of a picture with its prompts, as `pnp-batch plan` counts them."""
    with tempfile.TemporaryDirectory() as name:
        manifest, output = Path(name) / "manifest.parquet", Path(name) / "output"
        work.manifest(manifest, 1, task.prompts)
        paths = str(manifest), str(output)
        job = RunConfig(*paths, model=task.model, steps=task.steps, device=task.device)
        return plan(job).tflop * 1e12


def _markdown(rows: Sequence[Row], case: Case, measured: Measured) -> Iterator[str]:
    """The table, and what is left out of it."""
    repeats, threads = len(measured[case.alone]), case.alone.threads
    yield (
        f"Seconds of a translated picture, medians of {repeats}; model `{case.alone.model}`, "
        f"{case.alone.steps} sampling steps, {threads} torch thread(s).\n"
    )
    yield (
        "| case | prompts | published | pnp-batch, one picture | ratio "
        "| pnp-batch, a batch | ratio | ratio of FLOPs |"
    )
    yield "|---" * 8 + "|"
    for row in rows:
        yield (
            f"| {row.case} | {row.prompts} | {row.published:.3f} "
            f"| {row.alone:.3f} | {row.published / row.alone:.2f} "
            f"| {row.batch:.3f} ({row.images} pictures) | {row.published / row.batch:.2f} "
            f"| {row.bound:.2f} |"
        )
    theirs, ours = measured[case.published], measured[case.batch]
    yield (
        f"\nLeft out: the published code takes {_median(theirs, IMPORTS):.1f} s for imports and "
        f"{_median(theirs, LOADING) / 2:.1f} s to load the model, in a process for each picture "
        f"and one for each of its prompts; pnp-batch takes {_median(ours, IMPORTS, LOADING):.1f} s "
        "for both, once for all pictures."
    )


def _median(seconds: Sequence[Mapping[str, float]], *parts: str) -> float:
    return median(sum(one[part] for part in parts) for one in seconds)


if __name__ == "__main__":
    main()
