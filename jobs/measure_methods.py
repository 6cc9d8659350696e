"""Measures every method on held-out drawings, in this process and without Ray.

For each variant: pictures, seconds of one (its share of a batch, inversion included), counted UNet
evaluations and decodings with a pass backwards; structure (edges and mask of the object against the
source), text (object colour, scene, rendition as the prompt says) and CLIP. The source prompt is
the drawing's caption. Pictures and seconds stay in a folder, so that the table can be made of
several calls, such as slow variants by many processes. `pnp-batch compare` does the same for any
manifest, on Ray, with an output of each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from pnp_batch.config import RunConfig
from pnp_batch.methods import get
from pnp_batch.parameters import resolved
from pnp_batch.report.plot import Axis, Point, scatter
from pnp_batch.report.sheet import Drawn, draw_sheet
from pnp_batch.world import benchmark, caption, compare
from pnp_batch.world.compare import ALL_TEXT, Estimate, Scores

MASKED = {"method": "masactrl", "inversion": "direct", "masactrl_mask": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "pnp": {},
    "pnp, empty source prompt": {"source_prompts": ()},
    "pnp, features only": {"pnp_attn_t": 0.0},
    "pnp, attention only": {"pnp_f_t": 0.0},
    "pnp, features of 4-11": {"pnp_f_layers": "4-11"},
    "pnp, negative-prompt": {"inversion": "negative-prompt"},
    "pnp, null-text": {"inversion": "null-text"},
    **{
        f"pnp-mask, {mode}": {"method": "pnp-mask", "mask_mode": mode}
        for mode in ("foreground", "background", "both")
    },
    **{f"sdedit {s:g}": {"method": "sdedit", "strength": s} for s in (0.5, 0.7, 0.85)},
    **{
        f"p2p, {kind}": {"method": "p2p", "inversion": kind}
        for kind in ("ddim", "negative-prompt", "null-text", "direct")
    },
    "p2p, direct, local blend": {"method": "p2p", "inversion": "direct", "local_blend": True},
    "masactrl": {"method": "masactrl"},
    "masactrl, direct": {"method": "masactrl", "inversion": "direct"},
    "masactrl, direct, mask": MASKED,
    **{
        f"ddim, {kind}": {"method": "ddim", "inversion": kind}
        for kind in ("ddim", "negative-prompt", "null-text", "edit-friendly")
    },
    "vqgan-clip": {"method": "vqgan-clip"},
    "flexit": {"method": "flexit"},
    "diffuseit": {"method": "diffuseit"},
    "text2live, 100 steps": {"method": "text2live", "optimiser_steps": 100},
    "diffusionclip": {"method": "diffusionclip"},
    "reconstruct": {"method": "reconstruct"},
    "copy": {"method": "copy"},
}
MEASURES = ("edge_correlation", "mask_iou", ALL_TEXT, "clip")
HEADS = ("edges ↑", "mask IoU ↑", "text ↑", "CLIP ↑")
SHEET = 8


@dataclass(frozen=True)
class Task:
    """Some pairs of the benchmark, by number, translated by one variant on one device."""

    variant: str
    pairs: tuple[int, ...]
    device: str
    batch_size: int
    folder: Path

    def path(self, pair: int) -> Path:
        """Where the picture of a pair lies."""
        return self.folder / _slug(self.variant) / f"{pair:03d}.png"


@click.command()
@click.option("--pairs", type=click.IntRange(4), default=64, show_default=True, help="How many.")
@click.option("--only", multiple=True, help="A variant (repeatable; default: all).")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--processes", type=click.IntRange(1), default=1, help="Which share the pairs.")
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Of the pictures.")
@click.option("--table", is_flag=True, help="Of what is in the folder, with a grid and a plot.")
def main(pairs: int, only: tuple[str, ...], table: bool, processes: int, **given: Any) -> None:
    """Translate held-out pairs by each variant, or tell what came of it."""
    names = only or tuple(VARIANTS)
    if table:
        click.echo("\n".join(_table(names, pairs, given["folder"])))
        return
    tasks = [
        Task(name, tuple(range(start, pairs, processes)), **given)
        for name in names
        for start in range(processes)
    ]
    if processes == 1:
        for task in tasks:
            click.echo(f"{task.variant}: {_translate(task):.2f} s a picture")
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for task, seconds in zip(tasks, pool.map(_translate, tasks), strict=True):
            click.echo(f"{task.variant} {task.pairs}: {seconds:.2f} s a picture")


def _translate(task: Task) -> float:
    """Makes the pictures of a task that are not there; seconds of one."""
    left = [pair for pair in task.pairs if not task.path(pair).exists()]
    if not left:
        return 0.0
    translator = _translator(task.device)
    cases = [benchmark.case(pair) for pair in left]
    begun = time.perf_counter()
    told = {"source_prompts": [caption(case.source) for case in cases]}
    made = translator.translate(
        [benchmark.drawn(case.source).image for case in cases],
        [case.prompt for case in cases],
        batch_size=task.batch_size,
        **{**told, **VARIANTS[task.variant]},
    )
    seconds = (time.perf_counter() - begun) / len(left)
    task.path(0).parent.mkdir(parents=True, exist_ok=True)
    for pair, image in zip(left, made, strict=True):
        assert isinstance(image, Image.Image)
        image.save(task.path(pair))
    times = task.path(0).with_name(f"seconds-{left[0]:03d}.json")
    times.write_text(json.dumps({"seconds": seconds, "pictures": len(left)}))
    return seconds


@cache
def _translator(device: str) -> Any:  # noqa: ANN401 - torch is imported where it is needed
    import torch

    from pnp_batch import Translator

    torch.set_num_threads(1)
    loaded = Translator.load(device=device)
    picture = benchmark.drawn(benchmark.case(0).source).image
    loaded.translate([picture], ["warming up"], steps=2)  # the first one is slower
    return loaded


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def _table(names: Sequence[str], pairs: int, folder: Path) -> Iterator[str]:
    """A Markdown table; and `grid.png` and `plot.svg` in the folder."""
    tasks = [Task(name, tuple(range(pairs)), "", 0, folder) for name in names]
    tasks = [t for t in tasks if all(t.path(pair).exists() for pair in t.pairs)]
    scores = {task.variant: _scores(task) for task in tasks}
    plain = scores["pnp"]
    yield "| | " + " | ".join(HEADS) + " | edges - pnp | text - pnp | UNet | decodes | s |"
    yield "|---|" + "---:|" * (len(HEADS) + 5)
    for task in tasks:
        own = scores[task.variant]
        cells = [_cell(compare.mean(own, measure), ".2f") for measure in MEASURES]
        for measure in ("edge_correlation", ALL_TEXT):
            change = "" if own is plain else _cell(compare.difference(own, plain, measure), "+.2f")
            cells.append(change)
        evaluations, decodes = _cost(VARIANTS[task.variant])
        cells += [f"{evaluations}", f"{decodes}" if decodes else "", _seconds(task)]
        yield f"| {task.variant} | " + " | ".join(cells) + " |"
    _grid(tasks).save(folder / "grid.png")
    (folder / "plot.svg").write_text(_plot(scores))


def _scores(task: Task) -> Scores:
    from pnp_batch.evaluation.pair import NO_MASK, Pair

    found = []
    for number in task.pairs:
        case, image = benchmark.case(number), Image.open(task.path(number)).convert("RGB")
        pair = Pair(image, benchmark.drawn(case.source).image, case.prompt, mask=NO_MASK)
        told = benchmark.score(case, np.asarray(image))
        found.append({**told, "clip": _clip().score([pair])[0]["clip_similarity"]})
    return found


@cache
def _clip() -> Any:  # noqa: ANN401 - torch is imported where it is needed
    from pnp_batch.evaluation.clip import Clip
    from pnp_batch.models.networks import find

    return Clip(find("demo"))


def _cost(values: Mapping[str, Any]) -> tuple[int, int]:
    """UNet evaluations of a picture, its inversion and guidance branch included, and decodings."""
    config = RunConfig("-", "-", **{k: v for k, v in values.items() if k != "source_prompts"})
    method = get(config.method)
    cost = method.cost(config.sampling, resolved(method, config.parameters))
    inversion = config.sampling.inversion if cost.inversion else 0
    return inversion + cost.guidance + cost.row, cost.decodes


def _seconds(task: Task) -> str:
    told = [json.loads(p.read_text()) for p in task.path(0).parent.glob("seconds-*.json")]
    count = sum(one["pictures"] for one in told)
    together = "*" if len(told) > 1 else ""
    return f"{sum(one['seconds'] * one['pictures'] for one in told) / count:.2f}{together}"


def _grid(tasks: Sequence[Task]) -> Image.Image:
    every = max(1, len(tasks[0].pairs) // SHEET)
    lines = []
    for number in tasks[0].pairs[::every][:SHEET]:
        case = benchmark.case(number)
        made = tuple(("", Image.open(task.path(number)).convert("RGB")) for task in tasks)
        lines.append(Drawn(benchmark.drawn(case.source).image, made, case.prompt))
    return draw_sheet(lines, [task.variant for task in tasks], columns=1)


def _plot(scores: Mapping[str, Scores]) -> str:
    points, bounds = [], {"x": [0.0], "y": [0.0]}
    for name, own in scores.items():
        x, y = (compare.mean(own, measure) for measure in (ALL_TEXT, "edge_correlation"))
        ours = name.startswith("pnp")
        points.append(Point(name, x.mean, y.mean, y.low, y.high, ours, x.low, x.high))
        bounds["x"] += [x.low, x.high]
        bounds["y"] += [y.low, y.high]
    across = Axis.around("text followed (more is better)", bounds["x"][1:])
    return scatter(points, across, Axis.around("edge correlation with source", bounds["y"][1:]))


def _cell(found: Estimate, form: str) -> str:
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"


if __name__ == "__main__":
    main()
