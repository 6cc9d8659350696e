"""pyproject.toml in this folder, and extras as `a,b` -> the dependencies alone, one a line.

The image installs them before the package, so that a new release does not bring gigabytes anew.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
chosen = list(project["dependencies"])
for extra in filter(None, sys.argv[1].split(",")):
    chosen += project["optional-dependencies"][extra]
sys.stdout.write("".join(f"{line}\n" for line in chosen))
