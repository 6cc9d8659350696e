"""The project's own rules: its floors, what light commands import, its documents, its packaging."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pnp_batch
from pnp_batch import record, results
from pnp_batch.cli import COMMANDS
from pnp_batch.config import RunConfig
from pnp_batch.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pnp_batch"

# A part is a module of pnp_batch or a sub-package; `diffusion` is listed by its modules. A part
# imports from lower floors, or from parts that stand before it on its own floor. A new part needs a
# place here and in docs/architecture.md.
FLOORS = (
    (
        *(
            "errors",
            "steps",
            "option",
            "layers",
            "parameters",
            "config",
            "presets",
            "clock",
            "process",
            "given",
            "stores",
            "client",
            "atomic",
            "storage",
            "lease",
            "manifest",
            "digest",
            "identity",
            "rows",
            "batches",
        ),
        *(
            "listing",
            "shards",
            "parts",
            "recorded",
            "results",
            "compaction",
            "record",
            "rates",
            "attempts",
            "scores",
        ),
    ),
    ("flops", "world", "source", "provenance", "building", "models", "latents"),
    (
        *("diffusion.schedule", "diffusion.sites", "diffusion.stopwatch", "diffusion.unet"),
        *("diffusion.attention", "diffusion.maps", "diffusion.injection", "diffusion.inversion"),
        *("diffusion.critic", "diffusion.losses", "diffusion.guide", "diffusion.layer"),
        *("diffusion.sampling", "diffusion.masking", "diffusion.finetuning", "diffusion.tuning"),
        *("diffusion.null_text", "diffusion.inversions", "diffusion.edit_friendly"),
        *("diffusion.control", "diffusion.source_branch", "diffusion.alignment"),
        *("diffusion.prompt_to_prompt", "diffusion.mutual"),
    ),
    ("methods",),
    (
        "origins",
        "engine",
        "translator",
        "sink",
        "job",
        "spending",
        "variants",
        "evaluation",
        "summary",
    ),
    (
        *("cluster", "metrics", "control", "stages", "execution", "resources", "translation"),
        *("pipeline", "launch", "progress", "scoring", "evaluate", "report", "compare"),
    ),
    (
        *("validate", "status", "gc", "dataset", "plan", "bench", "doctor"),
        *("inspection", "submission", "demo"),
        *("training", "cli"),
    ),
)
ORDER = {part: (floor, n) for floor, parts in enumerate(FLOORS) for n, part in enumerate(parts)}
LIGHT = {*FLOORS[0], "flops", "building"}
MAY_IMPORT_RAY = {
    *("cluster", "control", "stages", "execution", "resources", "translation", "pipeline"),
    *("progress", "scoring", "metrics", "submission"),
}
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "ray"}
# What a command needs only once it works: help is there at once without.
SLOW = {"pyarrow", "numpy", "fsspec", "yaml", "PIL"}


def modules() -> dict[str, Path]:
    """Every module of the package by its name below `pnp_batch`; the package's front page is ''."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Full names of what a module imports, late imports included, with their lines."""
    path = MODULES[module]
    package = ["pnp_batch", *module.split(".")] if module else ["pnp_batch"]
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def imported_modules(module: str) -> Iterator[tuple[str, int]]:
    """The modules of this package that a module imports, without itself and the front page."""
    for name, line in imports(module):
        if name.split(".")[0] == "pnp_batch":
            target = name.removeprefix("pnp_batch").removeprefix(".")
            while target not in MODULES:  # drop the class or function at the end
                target = target.rpartition(".")[0]
            if target not in ("", module):
                yield target, line


def part_of(module: str) -> str:
    pieces = module.split(".")
    return ".".join(pieces[:2]) if pieces[0] == "diffusion" else pieces[0]


def placed(module: str) -> bool:
    # The front page offers the library's names, and `diffusion` itself those of its modules.
    return module not in ("", "__main__", "diffusion")


def test_every_module_has_its_place():
    strangers = sorted({part_of(m) for m in MODULES if placed(m)} - set(ORDER))
    assert not strangers, f"{strangers}: give them a floor in tests/test_project.py"


def test_the_architecture_page_shows_the_same_floors():
    table = (ROOT / "docs/architecture.md").read_text().partition("## Floors")[2]
    shown = {
        (int(floor), name)
        for floor, files in re.findall(r"(?m)^\| (\d) \| ([^|]*) \|", table)
        for name in re.findall(r"`(\w+)/?`", files)
    }
    parts = {part_of(module) for module in MODULES if placed(module)}
    assert shown == {(ORDER[part][0], part.split(".")[0]) for part in parts}


@pytest.mark.parametrize("module", [module for module in MODULES if placed(module)])
def test_imports_point_downwards(module):
    wrong = []
    for target, line in imported_modules(module):
        mine, other = part_of(module), part_of(target)
        if other == "diffusion":  # its front page stands on all of its floor
            fits = ORDER[mine][0] > ORDER["diffusion.schedule"][0]
        else:
            fits = mine == other or ORDER[other] < ORDER[mine]
        if not fits:
            wrong.append(f"{MODULES[module].relative_to(ROOT)}:{line} imports {target}")
    assert not wrong


def test_no_import_cycles():
    """Holds inside the sub-packages too, whose modules the floors do not order."""
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != "open", " -> ".join((*path, module))
        if module in state:
            return
        state[module] = "open"
        for target, _ in imported_modules(module):
            visit(target, (*path, module))
        state[module] = "done"

    for module in filter(None, MODULES):
        visit(module, ())


@pytest.mark.parametrize("module", [module for module in MODULES if placed(module)])
def test_heavy_imports_stay_where_they_belong(module):
    roots = {name.split(".")[0] for name, _ in imports(module)}
    part = part_of(module)
    if part in LIGHT:
        assert not roots & HEAVY
    if part not in MAY_IMPORT_RAY:
        assert "ray" not in roots


def test_every_import_is_a_declared_dependency():
    """The wheel is tried beside this environment's packages, so that it would not notice."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        re.split(r"[\[<>=!~ ]", line)[0].lower().replace("_", "-")
        for line in project["dependencies"]
    }
    providers = packages_distributions()
    missing = set()
    for module in MODULES:
        for name, line in imports(module):
            root = name.split(".")[0]
            if root == "pnp_batch" or root in sys.stdlib_module_names:
                continue
            names = {d.lower().replace("_", "-") for d in providers.get(root, [root])}
            if not names & declared:
                missing.add(f"{MODULES[module].relative_to(ROOT)}:{line}: {root}")
    assert not missing


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is(module):
    assert (ast.get_docstring(tree(MODULES[module])) or "").strip()


@pytest.mark.parametrize("module", MODULES)
def test_no_prints_and_no_vague_names(module):
    assert not {"utils", "util", "helpers", "common", "misc"} & set(module.split("."))
    calls = [node for node in ast.walk(tree(MODULES[module])) if isinstance(node, ast.Call)]
    lines = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not lines


# Runs a command as the console script does; the last line of stderr tells what it imported.
PROBE = """
import json, sys
from pnp_batch.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
else:
    code = 0
heavy = sorted({heavy!r} & set(sys.modules))
sys.stderr.write("\\n" + json.dumps({{"code": code, "heavy": heavy}}))
"""


def probe(*arguments: str | Path) -> dict[str, Any]:
    script = ["-c", PROBE.format(heavy=HEAVY | SLOW), *map(str, arguments)]
    done = subprocess.run(
        [sys.executable, *script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    return found


@pytest.fixture
def manifest(tmp_path):
    rows = pa.table({"image": ["a.png", "b.png"], "prompt": ["a red house", "a blue boat"]})
    pq.write_table(rows, tmp_path / "manifest.parquet")
    return tmp_path / "manifest.parquet"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids="-".join)
def test_help_imports_nothing_that_takes_time(command):
    assert probe(*command, "--help") == {"code": 0, "heavy": []}


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_light_commands_import_neither_torch_nor_ray(command, manifest):
    found = probe(command, manifest)
    assert found["code"] == 0
    assert not HEAVY & set(found["heavy"])


def test_status_imports_neither_torch_nor_ray(tmp_path):
    output = Storage(str(tmp_path))
    job = RunConfig(manifest="m.csv", output=output.uri).as_dict()
    record.write(output, record.Record(config=job, settings={}, rows=2))
    done = [{"row_id": "a", "status": "ok", "output": "images/0/a.png"}]
    results.write(output, pa.Table.from_pylist(done, results.schema(pa.schema([]))))
    found = probe("status", tmp_path)
    assert found["code"] == 0
    assert not HEAVY & set(found["heavy"])


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == pnp_batch.__version__
    assert f"[{pnp_batch.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_are_exact():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert not [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)]


@pytest.mark.parametrize(
    ("document", "limit"), [("CONTRIBUTING.md", 80), ("docs/architecture.md", 60)]
)
def test_documents_stay_short(document, limit):
    assert len((ROOT / document).read_text().splitlines()) < limit


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(r"!\[.*\]\(.+\.(png|jpg|webp|gif|svg)\)|<img ", id="a picture"),
        pytest.param(r"\d[\d.,]* ?(times|s|seconds|minutes|images?/s)\b", id="a measured number"),
        pytest.param(r"make demo", id="the install and first command"),
        pytest.param(r"pnp-batch run .*--output", id="the main command"),
        pytest.param(r"(?m)^.*\bprompt\b.*$", id="a manifest"),
        pytest.param(r"results/", id="the tree it writes"),
    ],
)
def test_readme_begins_with_what_a_reader_needs(wanted):
    top = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert re.search(wanted, top)


def project_files() -> list[Path]:
    """What git tracks or would track here."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    paths = {ROOT / name for name in listing.stdout.split("\0") if name}
    return sorted(path for path in paths if path.is_file())


def test_relative_links_resolve():
    broken = []
    for path in project_files():
        if path.suffix != ".md":
            continue
        text = re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8"))
        links = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
        for link in links:
            target = link.partition("#")[0]
            if target and not re.match(r"[a-z][a-z0-9+.-]*:", target):
                place = (ROOT if target.startswith("/") else path.parent) / target.lstrip("/")
                if not place.exists():
                    broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert not broken


def test_no_paths_of_a_machine():
    here = re.escape(os.fspath(ROOT)) if len(ROOT.parts) > 2 else r"\Z."
    # /home/ray is the user of Ray's own container images.
    pattern = re.compile(rf"{here}|(?<![\w.}}])/(?:home/(?!ray\b)|Users/|root/)\w")
    found = []
    for path in project_files():
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            for n, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
                if pattern.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{n}: {line.strip()[:80]}")
    assert not found
