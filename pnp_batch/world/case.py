"""What was drawn and what was asked for: a spec as JSON and a prompt in, a benchmark's case out.

Manifests of drawn pictures carry the spec, so that translations are scored without the manifest.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pnp_batch.world.benchmark import Case, drawn
from pnp_batch.world.captions import caption
from pnp_batch.world.drawing import recast
from pnp_batch.world.spec import COLOURLESS, COLOURS, OBJECTS, RENDITIONS, SCENES, Spec

LONGEST = 400
WORDS = {"object": OBJECTS, "colour": COLOURS, "scene": SCENES, "rendition": RENDITIONS}
NUMBERS = ("size", "x", "y")


def as_json(spec: Spec) -> str:
    """A spec as the column `world` holds it."""
    return json.dumps(asdict(spec))


def case_of(world: object, prompt: str) -> Case:
    """The case of a drawn picture and a prompt.

    Args:
        world: the picture's spec, as `as_json` makes it.
        prompt: in the captions' words.

    Raises:
        ValueError: either is not, or they speak of different objects.
    """
    source = _spec(world)
    target = recast(source, **_asked(prompt))
    if target.object != source.object:
        raise ValueError(f"the picture shows a {source.object}, the prompt a {target.object}")
    changes = [n for n in WORDS if getattr(source, n) != getattr(target, n)]
    return Case(prompt, " and ".join(changes) or "nothing", source, target)


def may_change(case: Case) -> NDArray[np.bool_]:
    """Where a translation may differ from its source: the object, what is around it, or both."""
    source, target = case.source, case.target
    whole = source.rendition != target.rendition
    mask = drawn(source).mask
    inside = whole or source.colour != target.colour
    outside = whole or source.scene != target.scene
    return (mask & inside) | (~mask & outside)


def _spec(text: object) -> Spec:
    """A spec from a manifest, which a stranger may have written."""
    fields = Spec.__dataclass_fields__
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError("not the JSON of a spec")
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(found, dict) or found.keys() != fields.keys():
        raise ValueError(f"not a spec, which has {', '.join(fields)}")
    for name, known in WORDS.items():
        if not isinstance(found[name], str) or found[name] not in known:
            raise ValueError(f"{name} {found[name]!r} is none of {', '.join(known)}")
    for name in NUMBERS:
        if not isinstance(found[name], int | float) or not 0 <= found[name] <= 1:
            raise ValueError(f"{name} {found[name]!r} is not in 0..1")
    if not isinstance(found["flip"], bool) or not isinstance(found["seed"], int):
        raise ValueError("flip is not true or false, or seed no whole number")
    return Spec(**found)


def _asked(prompt: str) -> dict[str, str]:
    """The attributes that a caption names."""
    found = _captions().get(" ".join(prompt.split()).lower())
    if found is None:
        raise ValueError(f"the prompt {prompt[:80]!r} is not in the captions' words")
    return found


@cache
def _captions() -> dict[str, dict[str, str]]:
    """Every caption there is, with what it names."""
    spec = Spec(OBJECTS[0], "red", SCENES[0], "flat", size=0.3, x=0.5, y=0.5, flip=False, seed=0)
    found = {}
    for values in product(*WORDS.values()):
        asked = dict(zip(WORDS, values, strict=True))
        words = caption(recast(spec, **asked))
        if asked["rendition"] in COLOURLESS:
            del asked["colour"]
        found[words] = asked
    return found
