"""`validate`, `status`, `gc`, `methods` and `doctor`: the commands that look."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from pnp_batch.cli.options import (
    IMAGE_LIMITS,
    answer,
    common,
    configured,
    failures,
    options,
)
from pnp_batch.clock import duration
from pnp_batch.errors import EXIT_BROKEN


@click.command()
@click.argument("manifest")
@click.option("--images", is_flag=True, help="Open every image too.")
@options(IMAGE_LIMITS)
@common
def validate(manifest: str, images: bool, as_json: bool, **given: Any) -> None:
    """Check MANIFEST as a run would; bad rows are shown, they stop no run."""
    from pnp_batch.validate import validate as check

    found = check(configured({"manifest": manifest, "output": "-", **given}), images=images)
    kinds = f"{found.linked} linked, {found.embedded} embedded, {found.generated} generated"
    lines = [f"{found.rows} rows, {found.images} guidance images ({kinds})"]
    lines.append("extra columns: " + (", ".join(found.extra) or "none"))
    opened = "not opened (--images opens them)" if found.opened is None else "all opened"
    lines.append(f"images: {opened}")
    lines.append(f"bad rows: {found.bad_rows}")
    lines += failures(found.bad)
    answer("\n".join(lines), {**asdict(found), "bad_rows": found.bad_rows}, as_json=as_json)


@click.command()
@click.argument("output", metavar="URI")
@common
def status(output: str, as_json: bool) -> None:
    """Show how far the output at URI is, also while a run is writing it."""
    from pnp_batch import record
    from pnp_batch import status as library

    found = library.status(output)
    counts = f"{found.done} done, {found.failed} failed, {found.missing} missing of {found.rows}"
    lines = [f"{found.state}: {counts}"]
    if found.rate:
        lines.append(f"rate: {found.rate:.2f} rows/s")
    if found.eta_seconds is not None:
        lines.append(f"ETA: {duration(found.eta_seconds)}")
    lines.append(f"started {found.started_at}, last written {found.updated_at}")
    lines += failures(found.failures)
    if found.state == library.STALLED:
        lines.append("nothing was written for a minute: the run may be dead")
    if found.missing and found.state != record.RUNNING:
        lines.append(f"next: {found.command}")
    elif found.failed:
        lines.append(f"next: pnp-batch retry {output}")
    answer("\n".join(lines), {**asdict(found), "missing": found.missing}, as_json=as_json)


@click.command()
@click.argument("output", metavar="URI")
@click.option("--delete", is_flag=True, help="Remove what is found.")
@click.option(
    "--latents",
    is_flag=True,
    help="Also latents that no row of this output came from; other jobs may use them.",
)
@common
def gc(output: str, delete: bool, latents: bool, as_json: bool) -> None:
    """List what killed runs have left at URI and nothing refers to; remove it if asked."""
    from pnp_batch.gc import collect

    found = collect(output, delete=delete, latents=latents)
    lines = list(found.leftovers)
    if found.busy:
        lines.append("a run is writing there: what is left over can be told when it has ended")
    else:
        lines.append(f"{len(found.leftovers)} leftovers" + " removed" * found.deleted)
    if found.missing:
        named = ", ".join(map(repr, found.missing[:3]))
        lines.append(f"{len(found.missing)} images are gone that the results name: rows {named}")
        lines.append("bring them back, or remove results/ and run again: inversions are cached")
    if found.leftovers and not found.deleted:
        lines.append(f"next: pnp-batch gc {output} --delete" + " --latents" * latents)
    answer("\n".join(lines), asdict(found), as_json=as_json)


@click.command()
@common
def methods(as_json: bool) -> None:
    """List the translation methods, their parameters and what they cost."""
    from pnp_batch import methods as library
    from pnp_batch.parameters import resolved
    from pnp_batch.steps import Sampling

    told, lines = [], []
    for name in library.names():
        method = library.get(name)
        defaults = resolved(method, {})
        cost = method.cost(Sampling(steps=50), defaults)
        told.append(
            {
                "name": name,
                "summary": method.summary,
                "paper": method.paper,
                "parameters": defaults,
                "cost_at_50_steps": asdict(cost),
            }
        )
        lines.append(f"{name}: {method.summary}")
        lines += [f"  {method.paper}"] * bool(method.paper)
        lines += [f"  {key} = {value!r}" for key, value in defaults.items()]
        inverted = "50 for the inversion, " if cost.inversion else ""
        lines.append(
            f"  UNet evaluations at 50 steps: {inverted}{cost.guidance} of the guidance branch "
            f"for each image, {cost.row} for each row"
        )
    answer("\n".join(lines), {"methods": told}, as_json=as_json)


@click.command()
@click.argument("uris", nargs=-1, metavar="[URI]...")
@click.option("--model", default="demo", show_default=True, help="The model to check.")
@common
def doctor(uris: tuple[str, ...], model: str, as_json: bool) -> int:
    """Check this machine, a model, and the storage at each URI."""
    from pnp_batch.doctor import examine

    checks = list(examine(model, uris))
    lines = []
    for check in checks:
        lines.append(f"{'ok     ' if check.ok else 'problem'}  {check.name}: {check.found}")
        lines += [f"         hint: {check.hint}"] * (not check.ok)
    body = {"ok": all(c.ok for c in checks), "checks": [{**asdict(c), "ok": c.ok} for c in checks]}
    answer("\n".join(lines), body, as_json=as_json)
    return 0 if body["ok"] else EXIT_BROKEN
