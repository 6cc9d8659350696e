"""`submit` and `jobs`: jobs on a Ray cluster."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pnp_batch.cli.options import answer, common, configured, job
from pnp_batch.clock import duration
from pnp_batch.errors import JobError

if TYPE_CHECKING:
    from pnp_batch.config import RunConfig
    from pnp_batch.submission import Jobs, Submitted

F = TypeVar("F", bound=Callable[..., Any])


@click.command()
@click.option("--detach", is_flag=True, help="Do not wait for the job to end.")
@click.option(
    "--check/--no-check",
    default=True,
    help="Look at manifest, model and output from here first.  [default: check]",
)
@job
@common
def submit(detach: bool, check: bool, as_json: bool, **given: Any) -> int:
    """Run the job of MANIFEST on the Ray cluster whose dashboard is at --address.

    Follows what it says and returns its exit code. Submitted again, it goes on with what is
    missing; while it runs, it is followed and no second one begins.
    """
    from pnp_batch import submission

    config = submission.prepared(configured(given), check=check)
    return handed_over(config, detach=detach, as_json=as_json)


def handed_over(
    config: RunConfig, *, as_json: bool, detach: bool = False, retry: bool = False
) -> int:
    """Submits a job, follows it unless it is to be left alone, and tells how it is."""
    from pnp_batch import submission

    jobs = submission.Jobs(str(config.address))
    there, is_new = jobs.submit(config, retry=retry)
    what = "submitted" if is_new else "already there"
    click.echo(f"{what}: {there.id}, output {there.output}", err=True)
    if not detach:
        there = _followed(jobs, there, str(config.address))
    elif not as_json:
        click.echo(f"next: pnp-batch jobs logs {there.id} --address {config.address}", err=True)
    return _ended(there, as_json=as_json)


@click.group()
def jobs() -> None:
    """List, watch and stop jobs on a Ray cluster."""


def _on_cluster(command: F) -> F:
    return common(
        click.option(
            "--address",
            required=True,
            envvar="PNP_BATCH_ADDRESS",
            metavar="URL",
            help="Of the cluster's dashboard, http://HOST:8265.",
        )(command)
    )


@jobs.command("list")
@_on_cluster
def list_(address: str, as_json: bool) -> None:
    """List the jobs that the cluster remembers."""
    from pnp_batch.submission import Jobs

    found = Jobs(address).all()
    lines = [
        f"{one.id}  {one.state.lower():9}  {_time(one):>9}  {one.output}" for one in found
    ] or ["no jobs"]
    answer("\n".join(lines), {"jobs": [asdict(one) for one in found]}, as_json=as_json)


@jobs.command()
@click.argument("job", metavar="ID|URI")
@click.option("--follow", is_flag=True, help="Until it has ended; return its exit code.")
@_on_cluster
def logs(job: str, follow: bool, address: str, as_json: bool) -> int:
    """Show what a job says: the one of an id, or the latest one of an output."""
    from pnp_batch.submission import Jobs

    there = (cluster := Jobs(address)).one(job)
    if follow:
        return _ended(_followed(cluster, there, address), as_json=as_json)
    text = cluster.logs(there.id)
    answer(text.rstrip("\n"), {**asdict(there), "logs": text}, as_json=as_json)
    return 0


@jobs.command()
@click.argument("job", metavar="ID|URI")
@_on_cluster
def stop(job: str, address: str, as_json: bool) -> None:
    """Stop a job once what is in flight is recorded; submitted again, it goes on."""
    from pnp_batch.submission import Jobs

    there = (cluster := Jobs(address)).one(job)
    ended = cluster.stop(there.id)
    answer(f"{ended.id}: {ended.state.lower()}", asdict(ended), as_json=as_json)


def _followed(jobs: Jobs, there: Submitted, address: str) -> Submitted:
    """Shows what a job says on standard error until it has ended."""
    try:
        return jobs.follow(there.id, lambda text: click.echo(text, nl=False, err=True))
    except KeyboardInterrupt:
        error = JobError("not followed any more; the job goes on")
        error.hint = f"pnp-batch jobs stop {there.id} --address {shlex.quote(address)} stops it"
        raise error from None


def _ended(there: Submitted, *, as_json: bool) -> int:
    """Tells how a job is, and the exit code that follows from it."""
    from pnp_batch import submission

    code = 0 if there.goes_on else submission.exit_code(there)
    body = {**asdict(there), "exit_code": None if there.goes_on else code}
    answer(f"{there.id}: {there.state.lower()}, {there.output}", body, as_json=as_json)
    if code:
        # A driver has said itself what it has against it; of others Ray knows more.
        of_ray = "" if there.exit_code is not None else f": {there.message.partition(chr(10))[0]}"
        click.echo(f"error: job {there.id} {there.state.lower()}{of_ray}", err=True)
        click.echo("hint: submit it again to go on; what it said stands above", err=True)
    return code


def _time(one: Submitted) -> str:
    if one.started is None:
        return ""
    return duration((one.ended or time.time()) - one.started)
