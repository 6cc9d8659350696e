"""`methods`: what translation methods there are, and what each takes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pnp_batch.cli.options import answer, common
from pnp_batch.errors import InvalidConfig

if TYPE_CHECKING:
    from pnp_batch.methods.described import Described

WIDE = 100


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@common
def methods(names: tuple[str, ...], as_json: bool) -> None:
    """List the translation methods, or those named: what they do, take, need and cost."""
    from pnp_batch import methods as library
    from pnp_batch.methods.described import describe

    found, broken = [], {}
    for name in names or library.names():
        try:
            found.append(describe(name))
        except InvalidConfig as error:
            if names:
                raise
            broken[name] = f"{error}; {error.hint}"
    lines = [line for one in found for line in (*_lines(one), "")]
    lines += ["parameters", *_parameters(found)] if any(one.options for one in found) else []
    lines += [f"broken: {told}" for told in broken.values()]
    body = {"methods": [asdict(one) for one in found], "broken": broken}
    answer("\n".join(lines), body, as_json=as_json)


def _lines(one: Described) -> Iterator[str]:
    yield f"{one.name}: {one.summary}"
    if one.paper:
        yield f"  {one.paper}"
    if one.needs:
        yield f"  needs {', '.join(one.needs)}"
    if one.wants:
        yield f"  wants {', '.join(one.wants)}"
    if "inversion" in one.parameters:
        yield f"  inversions: {', '.join(one.inversions)}"
    yield from _wrapped(f"cost at 50 steps: {one.cost}", "    ")
    if one.parameters:
        given = ((_flag(name, one), _shown(value)) for name, value in one.parameters.items())
        values = (f"{start}{'' if start.endswith('=') else ' '}{value}" for start, value in given)
        yield from _wrapped("  ".join(value.replace(" ", "\0") for value in values), "  ")


def _parameters(found: Sequence[Described]) -> Iterator[str]:
    """What the parameters mean, each once."""
    told = {_flag(name, one): one.options[name] for one in found for name in one.options}
    wide = max(map(len, told), default=0) + 2
    for name, option in told.items():
        choices = option.get("choices", ())
        more = f" ({', '.join(choices)})" if choices else ""
        start = f"  {name.ljust(wide)}"
        yield from textwrap.wrap(
            option["help"] + more, WIDE, initial_indent=start, subsequent_indent=" " * len(start)
        )


def _flag(name: str, one: Described) -> str:
    """How a user gives a parameter."""
    from pnp_batch.option import flag
    from pnp_batch.parameters import OPTIONS

    return flag(name) if name in OPTIONS else f"--set {name}="


def _shown(value: Any) -> str:  # noqa: ANN401 - of any parameter
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"


def _wrapped(text: str, indent: str) -> Iterator[str]:
    lines = textwrap.wrap(
        text, WIDE, initial_indent="  ", subsequent_indent=indent, break_on_hyphens=False
    )
    yield from (line.replace("\0", " ") for line in lines)
