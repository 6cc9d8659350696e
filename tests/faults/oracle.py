"""The judge of an output after faults: it reads the files and knows nothing of the package.

In: an output, the row ids that it must hold, and, where there is one, the output of the same job
without faults. Out: findings, each a sentence; none means that every promise was kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from tests.faults.places import Place

COLUMNS = ["row_id", "status", "error_type", "output", "width", "height", "sha256", "latents_key"]
ERROR_TYPES = {
    *("ImageNotFound", "ImageForbidden", "ImageUndecodable", "ImageTooLarge", "InvalidRow"),
    *("OutOfMemory", "RowTimeout", "StorageError", "ModelError"),
}
_RESULTS = re.compile(r"results/[^/.][^/]*\.parquet")
_TEMPORARY = re.compile(r"(^|/)\.|tmp|temp|partial|\.part$|~$", re.IGNORECASE)


@dataclass(frozen=True)
class Expectation:
    """What an output must hold.

    Attributes:
        row_ids: of the results, as `row_ids` reads them from a manifest.
        may_fail: rows that may end as an error; None for all.
        report: whether `report/` may be there.
    """

    row_ids: Collection[str]
    may_fail: Collection[str] | None = field(default=None)
    report: bool = False


def row_ids(manifest: Path) -> list[str]:
    """The ids of the results of a Parquet manifest that has a `row_id` column."""
    ids = []
    for row in pq.read_table(manifest, columns=["row_id", "prompt"]).to_pylist():
        name, prompt = row["row_id"], row["prompt"]
        several = isinstance(prompt, list)
        ids += [f"{name}-{k}" for k in range(len(prompt))] if several else [name]
    return ids


def judge(output: Place, expected: Expectation, reference: Place | None = None) -> list[str]:
    """Everything that is wrong with an output whose run has ended; empty when nothing is.

    Args:
        output: the output.
        expected: its rows, and which of them may have failed.
        reference: the output of the same job without faults; images and latents must have its
            bytes.
    """
    names = output.names()
    there = set(names)
    rows, findings = _rows(output, names)
    findings += _of_rows(rows, expected)
    for row in rows:
        if row["status"] == "ok":
            findings += _of_image(row, output, there)
    findings += _of_run(output, names)
    findings += _of_latents(output, names)
    findings += _left_over(names, rows, expected)
    findings += [f"a multipart upload of {name} is still open" for name in output.uploads()]
    if reference:
        findings += _of_bytes(output, reference)
    return findings


def judge_cache(cache: Place, reference: Place | None = None) -> list[str]:
    """Everything that is wrong with a latent cache of its own, such as one that jobs share."""
    names = cache.names()
    findings = list(_of_latents(cache, names))
    for name in names:
        if not re.fullmatch(r"([0-9a-f]{2})/\1[0-9a-f]+\.safetensors", name):
            findings.append(f"{name} is no entry and left")
    findings += [f"a multipart upload of {name} is still open" for name in cache.uploads()]
    if reference:
        findings += _of_bytes(cache, reference)
    return findings


def judge_same(output: Place, reference: Place) -> list[str]:
    """What the first lacks of the second, and images and latents that differ."""
    lacking = set(reference.names()) - set(output.names())
    return [f"{name} is missing" for name in sorted(lacking)] + [*_of_bytes(output, reference)]


def _rows(output: Place, names: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of every results file that opens, and a finding for each that does not."""
    rows: list[dict[str, Any]] = []
    findings = []
    for name in names:
        if _RESULTS.fullmatch(name):
            try:
                table = pq.read_table(io.BytesIO(output.read(name)))
                rows += table.select(COLUMNS).to_pylist()
            except (pa.ArrowException, OSError, KeyError) as error:
                findings.append(f"{name} cannot be read: {error}")
    return rows, findings


def _of_rows(rows: list[dict[str, Any]], expected: Expectation) -> Iterator[str]:
    counts = dict.fromkeys(expected.row_ids, 0)
    for row in rows:
        name, status = row["row_id"], row["status"]
        if name not in counts:
            yield f"row {name} is recorded and not in the manifest"
        counts[name] = counts.get(name, 0) + 1
        if status == "error":
            if row["error_type"] not in ERROR_TYPES or row["output"] is not None:
                yield f"row {name} is no proper error: {row['error_type']}, {row['output']}"
            if expected.may_fail is not None and name not in expected.may_fail:
                yield f"row {name} ended as {row['error_type']} and has no reason to fail"
        elif status != "ok":
            yield f"row {name} has the status {status}"
    shared = {(row["row_id"], row["output"]) for row in rows if row["output"]}
    outputs = Counter(name for _, name in shared)
    for name in sorted(name for name, count in outputs.items() if count > 1):
        yield f"{name} is the image of more than one row"
    for name in expected.row_ids:
        if counts[name] != 1:
            yield f"row {name} is recorded {counts[name]} times"


def _of_image(row: dict[str, Any], output: Place, there: set[str]) -> Iterator[str]:
    name = row["output"]
    whose = f"the image of row {row['row_id']}, {name},"
    if name not in there:
        yield f"{whose} is not there"
        return
    data = output.read(name)
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        yield f"{whose} has another sha256 than recorded"
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.size != (row["width"], row["height"]):
                yield f"{whose} is {image.size}, recorded is {row['width']} x {row['height']}"
    except (OSError, SyntaxError, ValueError) as error:
        yield f"{whose} does not open whole: {error}"


def _of_run(output: Place, names: list[str]) -> Iterator[str]:
    if "run.json" not in names:
        yield "run.json is not there"
        return
    try:
        json.loads(output.read("run.json"))
    except ValueError as error:
        yield f"run.json cannot be read: {error}"


def _of_latents(cache: Place, names: list[str]) -> Iterator[str]:
    for name in names:
        if name.endswith(".safetensors"):
            try:
                load(cache.read(name))
            except SafetensorError as error:
                yield f"{name} does not open whole: {error}"


def _left_over(
    names: list[str], rows: list[dict[str, Any]], expected: Expectation
) -> Iterator[str]:
    named = {"run.json"} | {row["output"] for row in rows}
    named |= {f"latents/{key[:2]}/{key}.safetensors" for row in rows if (key := row["latents_key"])}
    for name in names:
        if (
            name in named
            or _RESULTS.fullmatch(name)
            or (expected.report and name.startswith("report/"))
        ):
            continue
        kind = "temporary" if _TEMPORARY.search(name) else "named by no row"
        yield f"{name} is left over and {kind}"


def _of_bytes(output: Place, reference: Place) -> Iterator[str]:
    """Images and latents; the records of two runs differ in their times."""
    for name in sorted(set(reference.names()) & set(output.names())):
        comparable = not name.endswith((".parquet", ".json", ".html"))
        if comparable and output.read(name) != reference.read(name):
            yield f"{name} has other bytes than without faults"
