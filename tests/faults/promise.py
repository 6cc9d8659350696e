"""What an experiment is: a promise, faults thrown at real runs, and what the judge found.

Each experiment is one function in a file of its own, in a short form for every run of the suite and
a long one for `python -m tests.faults.soak`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """How one experiment went.

    Attributes:
        runs: of `pnp-batch run` or another command, in all.
        faults: that were injected.
        rows: asked for, over all jobs.
        findings: what was wrong, each a sentence; none means that the promise was kept.
    """

    runs: int
    faults: int
    rows: int
    findings: tuple[str, ...] = field(default=())

    @classmethod
    def joined(cls, parts: Iterable[Outcome]) -> Outcome:
        """The parts of one experiment as one outcome."""
        known = list(parts)
        runs, faults, rows = (sum(getattr(p, n) for p in known) for n in ("runs", "faults", "rows"))
        return cls(runs, faults, rows, tuple(said for part in known for said in part.findings))


@dataclass(frozen=True)
class Experiment:
    """One promise and where its experiment is.

    Attributes:
        promise: its number, such as `P1`.
        says: the promise in words.
        does: what is done to break it.
        module: of `tests.faults`, which has a function `experiment(folder, long)`.
    """

    promise: str
    says: str
    does: str
    module: str

    def run(self, folder: Path, *, long: bool) -> Outcome:
        """Does it in an empty folder."""
        function: Callable[[Path, bool], Outcome]
        function = import_module(f"tests.faults.{self.module}").experiment
        return function(folder, long)


EXPERIMENTS = (
    Experiment(
        "P1",
        "every row ends exactly once",
        "`kill -9` of driver, actor and node process at random times, resumed until done",
        "kills",
    ),
    Experiment(
        "P2",
        "the bytes of images and latents do not depend on faults",
        "P1 with a diffusion model, compared with a translation in one process, left alone",
        "same_bytes",
    ),
    Experiment(
        "P3",
        "no torn file",
        "each storage call in turn reset, cut, unanswered, refused (503, 500) or hanging",
        "storage_calls",
    ),
    Experiment(
        "P4",
        "the latent cache is never torn or rotten",
        "kill during writes; stored entries flipped and cut: a miss and a new inversion, logged",
        "rotten_cache",
    ),
    Experiment(
        "P5",
        "jobs share a cache, and one output has one writer",
        "2 and 4 drivers at once on one cache; two on one output, with and without --wait",
        "many_drivers",
    ),
    Experiment(
        "P6",
        "a cancelled run ends within 30 s and resumes what was in flight",
        "SIGINT and SIGTERM at random times, once and twice",
        "signals",
    ),
    Experiment(
        "P7",
        "throttling and outages of the store are lived through",
        "503 for 1, 10 and 50 % of the calls, and a total outage that ends",
        "throttling",
    ),
    Experiment(
        "P8",
        "a full disk is a clear error, and the resume passes",
        "small tmpfs for output, temporary files and Ray's spilling",
        "full_disk",
    ),
    Experiment(
        "P9",
        "a row that kills its worker ends as an error, its neighbours are ok",
        "rows that kill, hang or break their worker each time",
        "killer_rows",
    ),
    Experiment(
        "P10",
        "hostile images and URIs end as the right error, no secret and no request gets out",
        "poisoned manifests, a canary server, secrets searched for in everything written",
        "strangers",
    ),
    Experiment(
        "P11",
        "a lost node costs only what was in flight there",
        "a two-node Ray cluster on one machine, one node killed",
        "lost_node",
    ),
    Experiment(
        "P12",
        "the driver's memory does not grow with the rows",
        "`copy` of 100,000 and 1,000,000 rows, killed and resumed on the way",
        "many_rows",
    ),
)
