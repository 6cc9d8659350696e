"""One resumable training loop for all stages: a task gives a module and a loss."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Task(Protocol):
    """What is trained; no randomness but the generator's, so that resuming is exact."""

    module: nn.Module

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step and numbers to log; ``progress`` runs from 0 to 1."""

    def measure(self, average: nn.Module) -> dict[str, float]:
        """Quality of the averaged weights on held-out pictures."""


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train.

    The learning rate rises over ``warmup`` steps, stays, and falls along a cosine from the fraction
    ``hold`` of the budget on. The budget is ``steps``, or ``minutes`` of training if that is less.
    """

    steps: int
    lr: float
    minutes: float = math.inf
    warmup: int = 100
    hold: float = 0.0
    floor: float = 0.02
    average: float = 0.999
    report_every: int = 50
    measure_every: int = 1000
    save_minutes: float = 3.0
    seed: int = 0


class Run:
    """The state of one training: module, average, optimiser, step and the seconds spent."""

    def __init__(self, task: Task, settings: Settings, directory: Path) -> None:
        """Continues from ``directory/checkpoint.pt`` where it exists."""
        self.task, self.settings, self.directory = task, settings, directory
        self.average = copy.deepcopy(task.module).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            [p for p in task.module.parameters() if p.requires_grad],
            lr=settings.lr,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=True,
        )
        self.step, self.seconds = 0, 0.0
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        directory.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.restore()

    @property
    def path(self) -> Path:
        """The checkpoint file."""
        return self.directory / "checkpoint.pt"

    def restore(self) -> None:
        """Loads the checkpoint."""
        state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        self.task.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Writes the checkpoint in one move."""
        if self.rank:
            return
        state = {
            "module": self.task.module.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    @property
    def progress(self) -> float:
        """The part of the budget that is spent, from 0 to 1."""
        return min(
            1.0, max(self.step / self.settings.steps, self.seconds / 60 / self.settings.minutes)
        )

    def rate(self) -> float:
        """The learning rate of the coming step."""
        s = self.settings
        fall = max(0.0, self.progress - s.hold) / max(1e-9, 1 - s.hold)
        cosine = max(s.floor, 0.5 + 0.5 * math.cos(math.pi * fall))
        return s.lr * min(1.0, (self.step + 1) / s.warmup) * cosine

    def advance(self) -> dict[str, float]:
        """One step: loss, gradients (averaged over processes), update, running average."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        generator = torch.Generator().manual_seed(
            (self.settings.seed * 1_000_003 + self.step) * 64 + self.rank
        )
        loss, numbers = self.task.loss(generator, self.progress)
        self.optimiser.zero_grad()
        loss.backward()
        share_gradients(self.task.module)
        norm = nn.utils.clip_grad_norm_(self.task.module.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(self.settings.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            mine: list[Tensor] = list(self.average.parameters())
            theirs: list[Tensor] = list(self.task.module.parameters())
            torch._foreach_lerp_(mine, theirs, 1 - keep)
        return {"loss": loss.item(), "norm": norm.item(), **numbers}

    def finish(self) -> nn.Module:
        """Trains until the budget is spent and returns the averaged module."""
        sums: defaultdict[str, float] = defaultdict(float)
        saved = began = time.monotonic()
        spent = self.seconds
        while self.agreed_progress() < 1:
            for name, value in self.advance().items():
                sums[name] += value / self.settings.report_every
            self.seconds = spent + time.monotonic() - began
            if self.step % self.settings.report_every == 0:
                self.report(dict(sums))
                sums.clear()
            if self.step % self.settings.measure_every == 0 and not self.rank:
                self.report(self.task.measure(self.average))
            if time.monotonic() - saved > 60 * self.settings.save_minutes:
                self.save()
                saved = time.monotonic()
        self.save()
        if not self.rank:
            self.report({"done": 1.0, **self.task.measure(self.average)})
        return self.average

    def agreed_progress(self) -> float:
        """The progress, the same in every process."""
        value = torch.tensor([self.progress])
        if dist.is_initialized():
            dist.broadcast(value, 0)
        return float(value)

    def report(self, numbers: dict[str, float]) -> None:
        """Appends one line of JSON to ``log.jsonl`` and logs it."""
        if self.rank:
            return
        numbers = {k: round(v, 5) for k, v in numbers.items()}
        line = json.dumps({"step": self.step, "seconds": round(self.seconds), **numbers})
        log.info("%s %s", self.directory.name, line)
        with (self.directory / "log.jsonl").open("a") as file:
            file.write(line + "\n")


def share_gradients(module: nn.Module) -> None:
    """Averages the gradients over all processes of a distributed run."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()
