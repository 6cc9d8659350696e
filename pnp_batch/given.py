"""What a user gives: a preset, a YAML file, `PNP_BATCH_*` variables, flags; out a `RunConfig`.

And the way back: the command that runs a configuration.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from pnp_batch.config import OPTIONS, RunConfig, default_of, switch
from pnp_batch.errors import InvalidConfig, WrongUsage, did_you_mean
from pnp_batch.option import flag
from pnp_batch.presets import PRESET, with_preset
from pnp_batch.process import elsewhere

ENV_PREFIX = "PNP_BATCH_"
INTEGER = "tag:yaml.org,2002:int"
# Keys of a job file that one command alone knows.
METHODS = "methods"
OF_COMMANDS = {METHODS: "compare"}


def read_file(text: str, path: str, also: Iterable[str] = ()) -> dict[str, Any]:
    """Parses a YAML job file.

    Args:
        text: of the file.
        path: what messages call it.
        also: keys that the command knows beside the options of `run`.

    Raises:
        InvalidConfig: it is no such file, or has a key that is unknown here.
    """
    import yaml  # --help needs none

    try:
        loaded = yaml.load(text, _loader())
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise InvalidConfig(f"{path}{line}: not valid YAML", "mend the file") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, Mapping):
        raise InvalidConfig(f"{path}: expected `key: value` lines", "see `pnp-batch run --help`")
    known = {PRESET, *also, *(f.name for f in fields(RunConfig))}
    for key in loaded:
        if key in OF_COMMANDS and key not in known:
            hint = f"pnp-batch {OF_COMMANDS[key]} --config {path}"
            raise InvalidConfig(f"{path}: the key {key!r} is of another command", hint)
        if key not in known:
            raise InvalidConfig(f"{path}: unknown key {key!r}", did_you_mean(str(key), known))
    return dict(loaded)


def _loader() -> Any:  # noqa: ANN401 - a class of yaml's
    """Reads YAML as 1.2 has it: `1:4` is no number of base 60."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, found) for tag, found in resolvers if tag != INTEGER]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    digits = re.compile(r"^[-+]?(0|[1-9][0-9]*)$")
    Loader.add_implicit_resolver(INTEGER, digits, list("-+0123456789"))
    return Loader


def read_environment(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The fields set by `PNP_BATCH_*` variables, such as `PNP_BATCH_STEPS=20`."""
    found: dict[str, Any] = {}
    environ = os.environ if environ is None else environ
    if preset := environ.get(ENV_PREFIX + PRESET.upper()):
        found[PRESET] = preset
    for name, option in OPTIONS.items():
        text = environ.get(ENV_PREFIX + name.upper())
        if text is None:
            continue
        if isinstance(default_of(name), tuple):
            found[name] = tuple(part for part in text.split(",") if part)
            continue
        try:
            found[name] = option.parsed(text)
        except (ValueError, KeyError) as error:
            raise InvalidConfig(
                f"{ENV_PREFIX}{name.upper()}={text!r}: expected {option.type.__name__}",
                f"unset it, or see {flag(name)}",
            ) from error
    return found


def build(
    flags: Mapping[str, Any],
    file: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> RunConfig:
    """Merges defaults < preset < file < environment < flags. `flags` holds only what was given."""
    merged = with_preset({**(file or {}), **read_environment(environ), **flags})
    for name, what in (("manifest", "a MANIFEST"), ("output", "--output URI")):
        if not isinstance(merged.get(name), str) or not merged[name]:
            raise WrongUsage(f"{what} is missing", "pnp-batch run MANIFEST --output URI")
    return RunConfig(**merged)


def command(config: RunConfig) -> list[str]:
    """The arguments of `pnp-batch` that run this job, or submit it again."""
    return ["submit" if elsewhere(config.address) else "run", *arguments(config)]


def arguments(config: RunConfig) -> list[str]:
    """Those of this job, with the flags that are not defaults."""
    words = [config.manifest, "--output", config.output]
    for name in OPTIONS:
        value = getattr(config, name)
        if value == default_of(name):
            continue
        if isinstance(value, bool):
            words.append(switch(name, value))
        else:
            for part in value if isinstance(value, tuple) else (value,):
                words += [flag(name), f"{part}"]
    return words
