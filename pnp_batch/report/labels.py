"""Names of points in a plot: points and names in, a box for each name out that covers no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LINE, LETTER = 15, 7  # what a name takes: its height, and the width of a letter
RADIUS = 6  # what a point takes
ASIDE = 8  # from a point to its name
APART = 4  # from a name to the next
NEAR = 24  # beyond that, a name needs a line to its point
STEPS = 20  # lines above and below a point in which its name may stand


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; `top` is less than `bottom`."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two have some place in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: Box) -> bool:
        """Whether all of the other lies inside."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom

    def nearest(self, across: float, up: float) -> tuple[float, float]:
        """The place inside that is nearest to some point."""
        return min(max(across, self.left), self.right), min(max(up, self.top), self.bottom)

    def is_beside(self, across: float, up: float) -> bool:
        """Whether one sees without a line that it belongs to that point."""
        near = self.nearest(across, up)
        return abs(near[0] - across) + abs(near[1] - up) <= NEAR


def placed(dots: Sequence[tuple[float, float]], names: Sequence[str], frame: Box) -> list[Box]:
    """Where the names of points go.

    Args:
        dots: the points, from the left and from the top.
        names: of them.
        frame: that the names shall not leave.

    Returns:
        A box for each name, which covers neither another name nor a point as long as there is room.
    """
    own = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in dots]
    taken: list[Box] = []
    for (across, up), name in zip(dots, names, strict=True):
        rooms = list(_rooms(across, up, LETTER * len(name) + APART))
        inside = [room for room in rooms if frame.holds(room)] or rooms
        free = (room for room in inside if not any(map(room.meets, (*own, *taken))))
        taken.append(next(free, inside[0]))
    return taken


def _rooms(across: float, up: float, wide: float) -> Iterator[Box]:
    """Places for a name, the nearest first: right and left, a little above or below the bars."""
    for step in range(STEPS):
        for top in (up - 18 - step * LINE, up + 6 + step * LINE):
            for left in (across + ASIDE, across - ASIDE - wide):
                yield Box(left, top, left + wide, top + LINE)
