"""The files of infra/ as the tests read them, and the versions that they have to agree with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

import pnp_batch

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
PINS = dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
IMAGE = f"pnp-batch:{pnp_batch.__version__}-cuda"


def documents(name: str) -> list[Any]:
    """The YAML documents of a file of infra/."""
    return list(yaml.safe_load_all((INFRA / name).read_text()))
