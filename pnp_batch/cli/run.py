"""`run`, `retry` and `demo`: the commands that translate."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

import click

from pnp_batch.cli.evaluate import evaluated, lines
from pnp_batch.cli.last_words import last_words
from pnp_batch.cli.options import answer, common, configured, failures, job
from pnp_batch.cli.submit import handed_over
from pnp_batch.clock import duration
from pnp_batch.config import RunConfig, with_values
from pnp_batch.errors import EXIT_INTERRUPTED, EXIT_TOO_MANY_FAILED
from pnp_batch.process import elsewhere, reachable

LOCAL = "local"


@click.command()
@job
@common
def run(as_json: bool, **given: Any) -> int:
    """Translate the rows of MANIFEST; run again, it does only what is missing."""
    return _translate(configured(given), as_json=as_json)


@click.command()
@click.argument("output", metavar="URI")
@click.option(
    "--address",
    metavar="ADDR",
    help=f"A Ray cluster, by its dashboard too; `{LOCAL}` is none.  [default: that of the job]",
)
@common
def retry(output: str, address: str | None, as_json: bool) -> int:
    """Run the failed rows of the output at URI again, with the same job."""
    from pnp_batch import record

    there = record.of_run(output).as_config(output)
    if address:
        there = with_values(there, address=None if address == LOCAL else address)
    if elsewhere(there.address):
        return handed_over(there, as_json=as_json, retry=True)
    return _translate(there, as_json=as_json, only_failed=True)


@click.command()
@click.option("--output", default="pnp-batch-demo", show_default=True, help="Where it writes.")
@common
def demo(output: str, as_json: bool) -> int:
    """Translate eight embedded pictures with the embedded model, score them, and show them."""
    from pnp_batch import cluster
    from pnp_batch.demo import demo_config
    from pnp_batch.evaluate import Settings
    from pnp_batch.report.page import write_report
    from pnp_batch.report.sheet import write_sheet

    job_config = demo_config(output)
    with cluster.connected(job_config.address, job_config.workers):  # one Ray for both
        code = _translate(job_config, as_json=as_json, next_command=not as_json)
        found = evaluated(job_config.output, Settings()) if code == 0 else None
    if found:
        for line in lines(found.tables[0], found.tables[0].lines):
            click.echo(line, err=as_json)
        for made in (write_sheet(job_config), write_report(job_config.output)):
            click.echo(f"look at {made}", err=as_json)
    return code


def _translate(
    job_config: RunConfig,
    *,
    as_json: bool,
    only_failed: bool = False,
    next_command: bool = True,
) -> int:
    reachable(job_config.address)
    from pnp_batch import pipeline, progress, record

    died = "the run's process was killed, or Ray's own processes were; what is recorded stays"
    with last_words(died, "run the same command again to go on"), progress.shown() as listener:
        result = pipeline.run(job_config, listener, only_failed=only_failed)
    body = {
        "output": result.output,
        "state": result.state,
        "exit_code": result.exit_code,
        "rows": result.total,
        "done": result.summary.done,
        "failed": result.summary.failed,
        "rows_this_run": result.progress.session_done,
        "inversions_made": result.progress.inverted,
        "inversions_cached": result.progress.cached,
        "latents_damaged": result.progress.damaged,
        "seconds": round(result.progress.seconds, 3),
        "errors": [asdict(failure) for failure in result.summary.failures],
    }
    answer(_told(result, next_command), body, as_json=as_json)
    if result.exit_code == EXIT_INTERRUPTED:
        spent = f"the {job_config.budget_hours} hours of --budget-hours are spent"
        what = spent if result.state == record.SPENT else "interrupted"
        raise pipeline.Interrupted(f"{what}, what was in flight is recorded")
    if result.exit_code == EXIT_TOO_MANY_FAILED:
        share = f"{result.summary.failed} of {result.total} rows failed"
        click.echo(f"error: {share}, more than --max-failed {job_config.max_failed:g}", err=True)
        click.echo(f"hint: mend them, then: pnp-batch retry {shlex.quote(result.output)}", err=True)
    return int(result.exit_code)


def _told(result: Any, next_command: bool) -> str:  # noqa: ANN401 - RunResult, imported late
    summary, progress = result.summary, result.progress
    missing = result.total - summary.done - summary.failed
    lines = [
        f"{summary.done} rows done, {summary.failed} failed, {missing} missing"
        f" of {result.total}: {result.output}",
        f"this run: {progress.session_done} rows in {duration(progress.seconds)},"
        f" {progress.inverted} inversions made, {progress.cached} cached",
    ]
    if progress.damaged:
        lines.append(f"latent cache: {progress.damaged} damaged entries found and replaced")
    lines += failures(summary.failures)
    if next_command and summary.failed:
        lines.append(f"next: pnp-batch retry {shlex.quote(result.output)}")
    elif next_command:
        lines.append(f"next: pnp-batch status {shlex.quote(result.output)}")
    return "\n".join(lines)
