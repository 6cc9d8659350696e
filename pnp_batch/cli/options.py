"""Options that several commands share, made from the fields of `RunConfig`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pnp_batch import config
from pnp_batch.config import OPTIONS, RunConfig
from pnp_batch.errors import InvalidConfig
from pnp_batch.given import build, read_file
from pnp_batch.option import RANGE, Option, flag
from pnp_batch.presets import PRESET, PRESETS

if TYPE_CHECKING:
    from pnp_batch.results import Failure

F = TypeVar("F", bound=Callable[..., Any])


def common(command: F) -> F:
    """`--json` and `--debug`, which every command takes."""
    command = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")(
        command
    )
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
    )(command)


def job(command: F) -> F:
    """Every option of `run`, and `--config`. The command gets them as one `given` mapping."""
    command = preset(options(OPTIONS)(command))
    command = click.option(
        "--config", "config_file", metavar="FILE.yaml", help="Read options from a job file."
    )(command)
    command = click.option("--output", metavar="URI", help="Where images and results go.")(command)
    return click.argument("manifest", required=False)(command)


def preset(command: F) -> F:
    """`--preset`, which stands for several options."""
    return click.option(
        flag(PRESET),
        PRESET,
        type=click.Choice(list(PRESETS)),
        help="Values of the options that trade the picture for time; other options beat it."
        "  [default: exact]",
    )(command)


# The options of `run` that decide which images and rows are good.
IMAGE_LIMITS = (
    "method",
    "allow_root",
    "allow_host",
    "max_image_mib",
    "max_image_mpixels",
    "read_timeout",
)


def options(names: Iterable[str]) -> Callable[[F], F]:
    """Some options of `run`."""

    def with_options(command: F) -> F:
        for name in reversed(list(names)):
            command = _flag(name, OPTIONS[name])(command)
        return command

    return with_options


def _flag(name: str, option: Option) -> Callable[[F], F]:
    default = config.default_of(name)
    told = option.help[0].upper() + option.help[1:] + "."
    if option.type is bool:
        both = "/".join(config.switch(name, on) for on in (True, False))
        shown = f"  [default: {config.switch(name, default).removeprefix('--')}]"
        return click.option(both, name, default=None, help=told + shown)
    shown = "" if default in (None, "", ()) else f"  [default: {default}]"
    return click.option(
        flag(name),
        name,
        type=_type(option),
        metavar=option.metavar or None,
        multiple=isinstance(default, tuple),
        default=None,
        help=told + shown,
    )


class _Ends(click.ParamType[Any]):
    """A number, or the least and the largest one as in 2:8."""

    name = "integer or range"

    def __init__(self, low: int | None, high: int | None) -> None:
        self._end: click.ParamType[Any] = click.IntRange(low, high)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ANN401 - as the base
        """The number, or the text of two good ones."""
        if not isinstance(value, str) or RANGE not in value:
            return self._end.convert(value, param, ctx)
        for end in value.split(RANGE, 1):
            self._end.convert(end, param, ctx)
        return value


def _type(option: Option) -> click.ParamType[Any]:
    if option.choices:
        return click.Choice(option.choices)
    if option.type is int:
        low, high = (None if b is None else int(b) for b in (option.low, option.high))
        return _Ends(low, high) if option.upto else click.IntRange(low, high)
    if option.type is float:
        return click.FloatRange(option.low, option.high)
    return click.STRING


def configured(given: Mapping[str, Any], otherwise: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration from what the command line gave. Flags beat environment beats file.

    `otherwise` holds what a command falls back on where `run` would ask for a value.
    """
    values = dict(given)
    file = {**(otherwise or {}), **job_file(values.pop("config_file", None))}
    return build({name: value for name, value in values.items() if value not in (None, ())}, file)


def job_file(path: str | None, also: Iterable[str] = ()) -> dict[str, Any]:
    """What a job file says, by key; nothing where there is none. Raises as `read_file` does."""
    from pnp_batch.storage import Storage  # --help needs no storage

    if not path:
        return {}
    folder, _, name = path.rpartition("/")
    data = Storage(folder or ("/" if path.startswith("/") else ".")).read_if_there(name)
    if data is None:
        raise InvalidConfig(f"{path}: no such file", "check --config")
    return read_file(data.decode("utf-8", "replace"), path, also)


def answer(text: str, body: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints a command's answer on standard output, for people or as one JSON object."""
    click.echo(json.dumps(body, ensure_ascii=False, default=str) if as_json else text)


def failures(found: Iterable[Failure]) -> list[str]:
    """Kinds of failure as lines, each with an example row."""
    lines = []
    for failure in found:
        lines.append(f"  {failure.count} x {failure.error_type}, such as row {failure.row_id!r}:")
        lines.append(f"    {failure.message}")
    return lines
