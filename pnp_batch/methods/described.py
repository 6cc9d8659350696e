"""Methods in words: what each does, takes, needs and costs, as `pnp-batch methods` lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pnp_batch import methods
from pnp_batch.methods.base import Cost, Method
from pnp_batch.option import Option
from pnp_batch.parameters import OPTIONS, resolved
from pnp_batch.steps import Sampling

STEPS = 50


@dataclass(frozen=True)
class Described:
    """What is to be known of a method.

    Attributes:
        parameters: their values where nobody gives any.
        options: of each parameter what it means and takes.
        inversions: kinds that it can start from; empty if it inverts nothing.
        needs: of the model and the machine.
        wants: columns of a manifest without which it does less.
        cost_at_50_steps: as `Cost` counts it, with the parameters' defaults.
        cost: the same in words.
    """

    name: str
    summary: str
    paper: str
    parameters: Mapping[str, Any]
    options: Mapping[str, Mapping[str, Any]]
    inversions: tuple[str, ...]
    needs: tuple[str, ...]
    wants: tuple[str, ...]
    cost_at_50_steps: Mapping[str, Any]
    cost: str


def describe(name: str) -> Described:
    """Describes the method of a name. Raises `InvalidConfig` if there is none or it is broken."""
    method = methods.get(name)
    defaults = resolved(method, {})
    cost = method.cost(Sampling(steps=STEPS), defaults)
    return Described(
        name=name,
        summary=method.summary,
        paper=method.paper,
        parameters=defaults,
        options={key: _told(OPTIONS.get(key) or method.options[key]) for key in defaults},
        inversions=method.inversions if method.inverts else (),
        needs=tuple(_needs(method, cost)),
        wants=method.wants,
        cost_at_50_steps=asdict(cost),
        cost=in_words(cost),
    )


def _told(option: Option) -> dict[str, Any]:
    """What a program may want to know of an option."""
    names = ("help", "choices", "low", "high", "per_row")
    told = {f.name: getattr(option, f.name) for f in fields(option) if f.name in names}
    return {"type": option.type.__name__, **{k: v for k, v in told.items() if v not in (None, ())}}


def _needs(method: Method, cost: Cost) -> Iterator[str]:
    if cost.inversion or cost.guidance or cost.row:
        yield "UNet"
    if method.uses_model:
        yield "VAE"
    if "clip" in method.parameters:
        yield "CLIP"
    if cost.gradients or cost.guidance_gradients or "optimiser_steps" in method.parameters:
        yield "memory for passes backwards"


def in_words(cost: Cost, steps: int = STEPS) -> str:
    """The UNet evaluations of a method, told apart by what they are for."""
    image, row = list(_of_image(cost, steps)), list(_of_row(cost))
    parts = [f"for each image {', '.join(image)}"] if image else []
    parts += [f"for each row {', '.join(row)}"] if row else []
    if cost.trained:
        parts.append(
            f"for each pair of source and target text {cost.trained} evaluations, "
            f"{cost.trained_gradients} of these with a pass backwards"
        )
    return "; ".join(parts) or "no UNet evaluations"


def _of_image(cost: Cost, steps: int) -> Iterator[str]:
    if cost.inversion:
        yield f"{steps} evaluations to invert it"
    if cost.guidance_to_attention:
        yield f"{cost.guidance_to_attention} of its branch as far as attention is injected"
    if cost.guidance_to_feature:
        yield f"{cost.guidance_to_feature} of its branch as far as features are"
    if cost.guidance_whole:
        yield f"{cost.guidance_whole} of its branch"
    if cost.guidance_gradients:
        yield f"{cost.guidance_gradients} of these with a pass backwards"


def _of_row(cost: Cost) -> Iterator[str]:
    if cost.row:
        yield f"{cost.row} evaluations"
    if cost.gradients:
        yield f"{cost.gradients} of these with a pass backwards"
    if cost.decodes:
        yield f"{cost.decodes} decodes with a pass backwards through CLIP"
