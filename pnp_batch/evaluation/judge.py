"""The judge: what to measure and with which networks in; scores of pairs out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pnp_batch.errors import InvalidModel
from pnp_batch.evaluation.background import Background
from pnp_batch.evaluation.clip import Clip
from pnp_batch.evaluation.drawn import Drawn
from pnp_batch.evaluation.pair import Found, Metric, NotScored, Pair
from pnp_batch.evaluation.perceptual import Perceptual
from pnp_batch.evaluation.pixels import Pixels
from pnp_batch.evaluation.structure import Structure
from pnp_batch.models import DEMO
from pnp_batch.models.networks import CLIP, SQUEEZENET, VIT, Network, find, find_weights

# The families of scores, in the order in which they are computed and told.
FAMILIES: dict[str, tuple[str, ...]] = {
    Clip.name: Clip.scores,
    Structure.name: Structure.scores,
    Perceptual.name: Perceptual.scores,
    Pixels.name: Pixels.scores,
    Background.name: Background.scores,
    Drawn.name: Drawn.scores,
}
# A part of every key; to be changed when a family's scores would come out otherwise.
VERSION = 1
NOT_FINITE = NotScored("it came out as no finite number")
NO_LPIPS = NotScored("LPIPS has no embedded network; --lpips names one")


@dataclass(frozen=True)
class Named:
    """The networks that a user named: `demo`, a directory or a hub id; for LPIPS a file."""

    clip: str | None = None
    vit: str | None = None
    lpips: str | None = None


@dataclass(frozen=True)
class Measures:
    """What to measure, and with what.

    Attributes:
        families: names of `FAMILIES`.
        clip, vit, lpips: the networks, or why there is none.
    """

    families: tuple[str, ...]
    clip: Network | NotScored
    vit: Network | NotScored
    lpips: Network | NotScored

    @property
    def columns(self) -> tuple[str, ...]:
        """The scores of these families."""
        return tuple(score for family in self.families for score in FAMILIES[family])

    @property
    def told(self) -> dict[str, str]:
        """Of each family that needs a network its name and digest, or why there is none."""
        networks = {Clip.name: self.clip, Structure.name: self.vit, Perceptual.name: self.lpips}
        return {
            family: f"{one.name} ({one.digest})" if isinstance(one, Network) else one.reason
            for family, one in networks.items()
            if family in self.families
        }

    @property
    def keys(self) -> dict[str, str]:
        """Of each family a text that changes whenever its scores would."""
        needed = {
            Clip.name: self.clip,
            Structure.name: self.vit,
            Perceptual.name: self.lpips,
            Background.name: self.lpips,
        }
        used = {family: needed.get(family) for family in self.families}
        digests = {f: n.digest if isinstance(n, Network) else "-" for f, n in used.items()}
        return {family: f"{family}:{VERSION}:{digest}" for family, digest in digests.items()}


def measures(families: Sequence[str], model: str, named: Named) -> Measures:
    """Finds the networks that some families need.

    The default for pictures of the embedded model is the embedded CLIP, whose vision tower also
    serves as the ViT. A default that cannot be had is missed, and its scores are none.

    Raises:
        InvalidModel: a network that was named cannot be had.
    """
    embedded = model == DEMO

    def found(family: str, name: str | None, default: str) -> Network | NotScored:
        wanted = {family, Background.name} if family == Perceptual.name else {family}
        if not wanted & set(families):
            return NotScored("not asked for")
        if name is None and embedded and family == Perceptual.name:
            return NO_LPIPS
        get = find_weights if family == Perceptual.name else find
        try:
            return get(name or (DEMO if embedded else default))
        except InvalidModel as error:
            if name is not None:
                raise
            return NotScored(str(error))

    return Measures(
        tuple(family for family in FAMILIES if family in families),
        clip=found(Clip.name, named.clip, CLIP),
        vit=found(Structure.name, named.vit, VIT),
        lpips=found(Perceptual.name, named.lpips, SQUEEZENET),
    )


class Judge:
    """Loaded networks that score pairs.

    Raises:
        InvalidModel: a network is of another kind than it should be.
    """

    def __init__(self, wanted: Measures, device: str = "cpu") -> None:
        self._wanted = wanted
        near, clip, vit = wanted.lpips, wanted.clip, wanted.vit
        lpips = Perceptual(near, device) if isinstance(near, Network) else near
        self._metrics: dict[str, Metric | NotScored] = {
            Clip.name: Clip(clip, device) if isinstance(clip, Network) else clip,
            Structure.name: Structure(vit, device) if isinstance(vit, Network) else vit,
            Perceptual.name: lpips,
            Pixels.name: Pixels(),
            Background.name: Background(lpips),
            Drawn.name: Drawn(),
        }

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Found]]:
        """Scores pairs; each has every column of the families asked for."""
        found: list[dict[str, Found]] = [{} for _ in pairs]
        for family in self._wanted.families:
            metric = self._metrics[family]
            more: Sequence[Mapping[str, Found]]
            if isinstance(metric, NotScored):
                more = [dict.fromkeys(FAMILIES[family], metric) for _ in pairs]
            else:
                more = metric.score(pairs)
            for scores, own in zip(found, more, strict=True):
                scores.update({name: _finite(one) for name, one in own.items()})
        return found


def _finite(one: Found) -> Found:
    return one if isinstance(one, NotScored) or math.isfinite(one) else NOT_FINITE
