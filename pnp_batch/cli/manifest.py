"""`manifest`: the group of commands that build manifests."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pnp_batch.cli.options import answer, common

if TYPE_CHECKING:
    from pnp_batch.building import Built, Target

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def manifest() -> None:
    """Build a manifest: from folders, tables, benchmarks, datasets, or of another manifest."""


def _target(command: F) -> F:
    """`--output` and `--force`, and what every command takes."""
    command = click.option("--force", is_flag=True, help="Replace a file that is there.")(command)
    command = click.option(
        "--output",
        metavar="FILE",
        default="manifest.parquet",
        show_default=True,
        help="The manifest to write: .parquet, .csv or .jsonl, local or any fsspec URI.",
    )(command)
    return common(command)


def _texts(command: F) -> F:
    """`--prompt` and `--prompts`."""
    command = click.option(
        "--prompts", "file", metavar="FILE", help="A text file with one prompt a line."
    )(command)
    return click.option("--prompt", "texts", metavar="TEXT", multiple=True, help="Repeatable.")(
        command
    )


def _images(told: str) -> Callable[[F], F]:
    return click.option("--images", metavar="DIR", help=told)


@manifest.command()
@click.argument("folder", metavar="DIR")
@_texts
@_target
def folder(
    folder: str, texts: tuple[str, ...], file: str | None, output: str, force: bool, as_json: bool
) -> None:
    """Every image below DIR with every prompt.

    DIR is a local folder or any fsspec URI.
    """
    from pnp_batch.building.folder import from_folder
    from pnp_batch.building.texts import gathered

    _tell([from_folder(folder, gathered(texts, file), _to(output, force))], as_json)


@manifest.command()
@click.argument("table", metavar="CSV")
@_images("Where its file names start from.  [default: the folder of CSV]")
@click.option("--image-column", default="image", show_default=True, help="Of file names.")
@click.option("--prompt-column", default="prompt", show_default=True, help="Of prompts.")
@_target
def pairs(
    table: str, images: str | None, output: str, force: bool, as_json: bool, **columns: str
) -> None:
    """Images and prompts as a CSV file pairs them.

    Its other columns are kept.
    """
    from pnp_batch.building.folder import from_pairs

    named = (columns["image_column"], columns["prompt_column"])
    _tell([from_pairs(table, images, _to(output, force), *named)], as_json)


@manifest.command()
@click.argument("file", metavar="YAML")
@_images("Where its images lie.  [default: the folder of YAML]")
@click.option("--benchmark", metavar="NAME", help="Its name.  [default: by the name of YAML]")
@_target
def ti2i(
    file: str, images: str | None, benchmark: str | None, output: str, force: bool, as_json: bool
) -> None:
    """A TI2I benchmark, by its YAML file.

    Wild-TI2I, ImageNet-R-TI2I or Generated-ImageNet-R-TI2I, as their authors publish them.
    """
    from pnp_batch.building.ti2i import from_ti2i

    _tell([from_ti2i(file, images, _to(output, force), benchmark)], as_json)


@manifest.command("pie-bench")
@click.argument("file", metavar="JSON")
@_images("Where its images lie.  [default: annotation_images beside JSON]")
@_target
def pie_bench(file: str, images: str | None, output: str, force: bool, as_json: bool) -> None:
    """PIE-Bench, by its mapping_file.json, with its masks."""
    from pnp_batch.building.pie_bench import from_pie_bench

    _tell([from_pie_bench(file, images, _to(output, force))], as_json)


@manifest.command()
@click.argument("dataset", metavar="DATASET")
@click.option("--prompt-column", "prompt", metavar="NAME", help="Of target texts.")
@click.option(
    "--source-prompt-column", "source_prompt", metavar="NAME", help="Of texts that describe images."
)
@click.option(
    "--image-column", "image", default="image", show_default=True, help="Of images, in Parquet."
)
@_texts
@_target
def hf(dataset: str, texts: tuple[str, ...], file: str | None, as_json: bool, **given: Any) -> None:
    """A Hugging Face dataset with images.

    DATASET is an image folder, a folder of Parquet files, one such file, or any fsspec URI of
    these, such as hf://datasets/OWNER/NAME.
    """
    from pnp_batch.building.hugging_face import Wanted, from_hugging_face
    from pnp_batch.building.texts import gathered

    target = _to(given.pop("output"), given.pop("force"))
    prompts = gathered(texts, file) if texts or file else ()
    _tell([from_hugging_face(dataset, Wanted(prompts, **given), target)], as_json)


@manifest.command()
@click.option("--pairs", type=click.IntRange(1), default=64, show_default=True, metavar="N")
@click.option(
    "--source-prompts",
    is_flag=True,
    help="Captions as source_prompt, which p2p and others want; source_caption shapes no picture.",
)
@_target
def world(pairs: int, source_prompts: bool, output: str, force: bool, as_json: bool) -> None:
    """Held-out pairs of the picture world."""
    from pnp_batch.building.drawn import from_world

    target = _to(output, force)
    _tell([from_world(pairs, target, source_prompts=source_prompts)], as_json)


@manifest.command()
@click.argument("whole", metavar="MANIFEST")
@click.option("-n", "parts", type=click.IntRange(2, 1000), required=True, help="How many parts.")
@click.option("--output", metavar="DIR", required=True, help="The folder of the parts.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@common
def split(whole: str, parts: int, output: str, force: bool, as_json: bool) -> None:
    """A manifest in parts.

    Rows of an image stay together, and all keep their ids, hence their pictures.
    """
    from pnp_batch.building.dividing import split as divide

    _tell(divide(whole, parts, output, force=force), as_json)


@manifest.command()
@click.argument("whole", metavar="MANIFEST")
@click.option("-n", "count", type=click.IntRange(1), required=True, help="How many rows.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other rows for another one.")
@_target
def sample(whole: str, count: int, seed: int, output: str, force: bool, as_json: bool) -> None:
    """Some rows of a manifest, drawn with a seed.

    They keep their ids, hence their pictures.
    """
    from pnp_batch.building.dividing import sample as draw

    _tell([draw(whole, count, _to(output, force), seed=seed)], as_json)


@manifest.command()
@click.argument("whole", metavar="MANIFEST")
@click.option(
    "--set",
    "given",
    metavar="NAME=V1,V2,...",
    multiple=True,
    required=True,
    help="A parameter and its values; repeatable. With ; between values that hold commas.",
)
@_target
def sweep(whole: str, given: tuple[str, ...], output: str, force: bool, as_json: bool) -> None:
    """A manifest with every row once for each combination of values.

    Ids tell the values: cat-0__pnp_f_t=0.4__pnp_attn_t=0.2. All rows of an image share its
    inversion and, unless it is swept, its seed.
    """
    from pnp_batch import methods
    from pnp_batch.building.sweep import sweep as multiply

    _tell([multiply(whole, given, _to(output, force), methods.KNOWN)], as_json)


def _to(output: str, force: bool) -> Target:
    from pnp_batch.building import Target

    return Target(output, force)


def _tell(found: Iterable[Built], as_json: bool) -> None:
    built = list(found)
    lines = []
    for one in built:
        told = [_counted(one.rows, "row"), _counted(one.images, "image")]
        told += [f"{one.generated} to generate"] * bool(one.generated)
        lines.append(f"wrote {one.manifest}: {', '.join(told)}, {_counted(one.outputs, 'output')}")
    first = built[0]
    lines += [f"note: {note}" for note in first.notes]
    roots = [text for root in first.allow_root for text in ("--allow-root", root)]
    if roots:
        lines.append(f"its images lie outside its folder: run it with {shlex.join(roots)}")
    command = ["pnp-batch", "validate", first.manifest, *roots, "--images"]
    lines.append(f"next: {shlex.join(command)}")
    bodies = [{**asdict(one), "next": shlex.join(command)} for one in built]
    body = bodies[0] if len(bodies) == 1 else {"parts": bodies}
    answer("\n".join(lines), body, as_json=as_json)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)
