"""`inspect`: what a model makes of images, as a picture."""

from __future__ import annotations

from typing import Any

import click

from pnp_batch.cli.options import answer, common, configured, options

SHAPING = (
    *("model", "revision", "steps", "inversion_steps", "resolution", "fit", "device", "dtype"),
    *("allow_host", "max_image_mib", "max_image_mpixels", "read_timeout"),
)


class Several(click.ParamType[tuple[Any, ...]]):
    """Values of one type with commas between them."""

    def __init__(self, one: click.ParamType[Any]) -> None:
        self._one = one
        self.name = one.name

    def convert(
        self,
        value: Any,  # noqa: ANN401 - as click gives it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[Any, ...]:
        """The values in a text; a default is no text."""
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(self._one.convert(part, param, ctx) for part in parts)


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--layers",
    type=Several(click.IntRange(0, 11)),
    metavar="N,...",
    default="1,4,7,11",
    show_default=True,
    help="Decoder layers, 0 to 11; those from 4 on are shown with their self-attention.",
)
@click.option(
    "--times",
    type=Several(click.FloatRange(0, 1)),
    metavar="X,...",
    default="0.45,0.8",
    show_default=True,
    help="Where in the sampling to look: 0 is noise, 1 the image.",
)
@click.option(
    "--prompt",
    default="",
    metavar="TEXT",
    help="What the images show: where each of its words acts is shown, too.",
)
@click.option(
    "--output",
    default="inspect.png",
    metavar="FILE.png",
    show_default=True,
    help="Where the picture goes; one that is there is replaced.",
)
@options(SHAPING)
@common
def inspect(
    images: tuple[str, ...],
    layers: tuple[int, ...],
    times: tuple[float, ...],
    prompt: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Show what a model makes of IMAGEs: principal components of its features and attention."""
    from pnp_batch.inspection import Wanted, inspect_files

    config = configured({"manifest": "-", **given})
    wanted = Wanted(layers, times, prompt, config.sampling, config.resolution, config.fit)

    def begin(image: str) -> None:
        click.echo(f"inverting {image!r}", err=True)

    found = inspect_files(images, wanted, config, begin)
    lines = []
    for kind in ("features", "self_attention"):
        for m in found[kind]:
            shares = " + ".join(f"{100 * share:.0f}" for share in m["explained_variance"])
            where = f"t {m['timestep']}, layer {m['layer']}, {m['height']} x {m['width']}"
            of = f" of {found['images'][m['image']]}" if "image" in m else ""
            lines.append(f"{kind.replace('_', '-')}{of}: {where}: {shares} % of the variance")
    answer("\n".join([*lines, f"look at {found['picture']}"]), found, as_json=as_json)
