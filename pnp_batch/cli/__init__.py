"""The command line: each command reads its options and calls one function of the library.

Standard output carries the answer, standard error everything else. An error is two lines,
`error:` and `hint:`, and an exit code.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from pnp_batch import __version__
from pnp_batch.errors import EXIT_BROKEN, EXIT_INTERRUPTED, EXIT_USAGE, JobError, did_you_mean

# Command name -> module that holds it: only the module of the command asked for is imported.
COMMANDS = {
    "demo": "pnp_batch.cli.run",
    "run": "pnp_batch.cli.run",
    "plan": "pnp_batch.cli.plan",
    "validate": "pnp_batch.cli.look",
    "retry": "pnp_batch.cli.run",
    "status": "pnp_batch.cli.look",
    "submit": "pnp_batch.cli.submit",
    "jobs": "pnp_batch.cli.submit",
    "evaluate": "pnp_batch.cli.evaluate",
    "report": "pnp_batch.cli.report",
    "compare": "pnp_batch.cli.compare",
    "inspect": "pnp_batch.cli.inspect",
    "manifest": "pnp_batch.cli.manifest",
    "dataset": "pnp_batch.cli.dataset",
    "provenance": "pnp_batch.cli.provenance",
    "gc": "pnp_batch.cli.look",
    "bench": "pnp_batch.cli.bench",
    "methods": "pnp_batch.cli.methods",
    "doctor": "pnp_batch.cli.look",
}


class Commands(click.Group):
    """Finds commands by name and imports them when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(COMMANDS[cmd_name])
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown command names the nearest known one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"no command {args[0]!r}; {near}", ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pnp-batch")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def cli() -> None:
    """Translate image datasets with text: Plug-and-Play diffusion features on Ray Data.

    Start with `pnp-batch demo`, then `pnp-batch run MANIFEST --output URI`.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with the code that the README lists."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(given, debug="--debug" in given))


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        code = cli.main(arguments, prog_name="pnp-batch", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    # No traceback reaches a user who did not ask for one.
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001
        if debug:
            traceback.print_exc()
        message, hint, code = _told(error)
        if code == EXIT_INTERRUPTED:
            hint = f"to go on, run: {shlex.join(['pnp-batch', *arguments])}"
        lines = (f"error: {' '.join(message.split())}", f"hint: {' '.join(hint.split())}")
        click.echo("\n".join(lines), err=True)
    return code if isinstance(code, int) else 0


def _told(error: BaseException) -> tuple[str, str, int]:
    """What an exception means to a user: the message, the hint, and the exit code."""
    if isinstance(error, JobError):
        return str(error), error.hint or "see pnp-batch --help", error.exit_code
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "interrupted", "run the same command again to go on", EXIT_INTERRUPTED
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "pnp-batch"
        return error.format_message(), f"see {where} --help", EXIT_USAGE
    told = f"{type(error).__name__}: {error}"
    return told, "run it again with --debug and report what it shows", EXIT_BROKEN
