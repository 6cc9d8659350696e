"""One job over rows from strangers: each bad row ends as itself, the others as if it was not there.

Oracle of promise and memory is the process tree seen from outside, and the servers' own logs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import Counter
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pnp_batch
from tests.faults.goods import good_files
from tests.faults.poison import MIB, poison
from tests.pictures import PNG
from tests.pipeline.conftest import rows_of, shared_ray  # noqa: F401 - a fixture
from tests.source.site import SECRET, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.faults, pytest.mark.ray]

POISON_SHARE = 0.4
# Of all processes together, above what they held before; Ray's workers, started for the job, are
# most of it, and their number follows that of the cores.
LARGEST_MIB = 2048 + 512 * (os.cpu_count() or 1)
SIDE = 32


def test_poison_rows_end_as_themselves_and_harm_nobody(
    tmp_path: Path,
    shared_ray: None,  # noqa: F811
) -> None:
    folder = tmp_path / "manifest"
    (folder / "images").mkdir(parents=True)
    with serving() as site, serving() as canary:
        bad = {f"bad-{n}": row for n, row in enumerate(poison(folder, site, canary))}
        good = _good(folder, round(len(bad) / POISON_SHARE) - len(bad))
        good |= {f"web-{n}": site.uri(f"a.png?{n}") for n in range(20)}
        images = {name: row.image for name, row in bad.items()} | good
        with _watched_memory() as memory:
            result = pnp_batch.run(_job(_manifest(folder, images), tmp_path / "out", site))
        assert canary.hits == []
        assert len([hit for hit in site.hits if hit.startswith("/a.png?")]) == 20
    logging.getLogger(__name__).info("MiB of the process tree: %s", [round(m) for m in memory])
    assert (result.total, result.summary.failed) == (len(images), len(bad))
    rows = rows_of(result.output)
    wrong = [
        f"{str(row.image)[:200]}: {rows[name]['error_type']}: {rows[name]['error_message']}"
        for name, row in bad.items()
        if not _is_right(row, rows[name])
    ]
    assert not wrong, "\n".join(wrong)
    assert Counter(rows[name]["status"] for name in good) == {"ok": len(good)}
    assert max(memory) - memory[0] < LARGEST_MIB, memory
    for name in good:
        data = (tmp_path / "out" / rows[name]["output"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == rows[name]["sha256"]
        assert data.startswith(PNG[:8])
        assert data.endswith(PNG[-8:]), "what followed the picture was copied"
    assert {(rows[name]["width"], rows[name]["height"]) for name in good} == {(SIDE, SIDE)}


def _is_right(expected: Any, row: dict[str, Any]) -> bool:
    message = row["error_message"] or ""
    return (
        (row["status"], row["error_type"]) == ("error", expected.error_type)
        and row["output"] is None
        and message.startswith(expected.named)
        and expected.advice in message
        and message.isprintable()
        and len(message) < 1000
        and SECRET not in message
    )


def _good(folder: Path, count: int) -> dict[str, str | bytes]:
    """Good neighbours: every format and mode, with an archive behind each, as file and as bytes."""
    names: list[str | bytes] = []
    for number, data in enumerate(good_files().values()):
        (folder / "images" / f"{number}.png").write_bytes(data + b"PK\3\4 archive")
        names += [f"images/{number}.png", data]
    return {f"good-{n}": names[n % len(names)] for n in range(count)}


def _manifest(folder: Path, images: dict[str, str | bytes]) -> Path:
    names = sorted(images, key=lambda name: Random(name).random())
    cells = [
        {"bytes" if isinstance(images[name], bytes) else "path": images[name]} for name in names
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {"row_id": names, "image": pa.array(cells, kind), "prompt": ["a cat"] * len(names)}
    pq.write_table(pa.table(table), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def _job(manifest: Path, output: Path, site: Any) -> pnp_batch.RunConfig:
    return pnp_batch.RunConfig(
        manifest=str(manifest),
        output=str(output),
        method="copy",
        device="cpu",
        workers=1,
        resolution=SIDE,
        allow_root=("/dev",),
        allow_host=(site.address, "localhost", "127.1", "2130706433"),
        max_image_mib=MIB,
        read_timeout=120.0,
    )


@contextmanager
def _watched_memory() -> Iterator[list[float]]:
    """MiB that are resident in this process and those below it, a few times a second."""
    seen, over = [_resident()], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            seen.append(_resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def _resident() -> float:
    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            used = process.memory_info()
        except psutil.Error:
            continue
        total += used.rss - getattr(used, "shared", 0)
    return total / 2**20
