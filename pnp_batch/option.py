"""Options: what one setting looks like to a user, which values it takes, and what it is part of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from inspect import get_annotations
from typing import Any

from pnp_batch.errors import InvalidConfig, did_you_mean

RANGE = ":"
SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class Option:
    """How one setting looks to a user, and which values it takes.

    Attributes:
        shapes: part of a job's fingerprint: another value gives another picture.
        per_row: a parameter of methods of which rows with different values share a UNet batch.
        upto: of a least number, the field of the largest one: `2:8` sets both.
        form: brings the texts that mean the same to one; called with the option's name and a text,
            it raises `InvalidConfig` for one that means nothing.
    """

    help: str
    type: type = str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    shapes: bool = False
    per_row: bool = False
    upto: str = ""
    form: Callable[[str, str], str] | None = None

    def parsed(self, text: str) -> Any:  # noqa: ANN401 - of the option's type
        """A value that is given as text. Raises `ValueError` or `KeyError` if it is none."""
        if self.upto and RANGE in text:
            return text
        return SWITCH[text.lower()] if self.type is bool else self.type(text)

    def ends(self, name: str, value: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """The least and the largest number of `2:8`; of one number alone no largest one.

        Raises:
            InvalidConfig: these are no two numbers.
        """
        if not self.upto or not isinstance(value, str):
            return value, None
        try:
            least, largest = map(self.type, value.split(RANGE))
        except ValueError as error:
            told = f"{name}: expected a number or two as in 2:8, got {value!r}"
            raise InvalidConfig(told, f"see {flag(name)}") from error
        return least, largest

    def checked(self, name: str, value: Any) -> Any:  # noqa: ANN401 - of the option's type
        """A value brought to the option's type.

        Raises:
            InvalidConfig: it has another type, or is not among those that the option takes.
        """
        if self.form and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # as YAML and JSON read `4`
        right = (int, float) if self.type is float else self.type
        if not isinstance(value, right) or isinstance(value, bool) != (self.type is bool):
            wanted = self.type.__name__
            raise InvalidConfig(f"{name}: expected {wanted}, got {value!r}", f"see {flag(name)}")
        value = self.type(value)  # 7 and 7.0 are one value, with one fingerprint
        if self.choices and value not in self.choices:
            raise InvalidConfig(
                f"{name}: unknown value {value!r}", did_you_mean(value, self.choices)
            )
        inside = (self.low is None or value >= self.low) and (
            self.high is None or value <= self.high
        )
        if not inside or value == math.inf:
            low, high = (("" if b is None else f"{b:g}") for b in (self.low, self.high))
            raise InvalidConfig(f"{name}: {value!r} is outside {low}..{high}", f"see {flag(name)}")
        return self.form(name, value) if self.form else value


def option(default: Any, help: str, **more: Any) -> Any:  # noqa: ANN401 - dataclass field
    """A field of a dataclass that is an option."""
    return field(default=default, metadata={"option": Option(help, **more)})


def of(kind: Any) -> dict[str, Option]:  # noqa: ANN401 - a dataclass
    """The options among the fields of a dataclass, by name, its own before those of its bases."""
    known = [field for field in fields(kind) if "option" in field.metadata]
    own = get_annotations(kind)
    known.sort(key=lambda field: field.name not in own)
    return {field.name: field.metadata["option"] for field in known}


def flag(name: str) -> str:
    """The command-line flag of an option: `pnp_f_t` is `--pnp-f-t`."""
    return "--" + name.replace("_", "-")
