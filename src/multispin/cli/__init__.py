"""The command line. Heavy imports happen inside the commands, so that --help is quick."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from multispin.cli.settings import PREFIX
from multispin.errors import CURABLE_CODES, BadInput, MultispinError

app = typer.Typer(
    name="multispin",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"auto_envvar_prefix": PREFIX},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"multispin {version('multispin')}")
        raise typer.Exit


@app.callback()
def everywhere(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            allow_from_autoenv=False,
            show_envvar=False,
            help="Print it and exit.",
        ),
    ] = False,
) -> None:
    """Cooperative token generation: devices draft, one server verifies."""


def main() -> None:
    """Run a command; what goes wrong on purpose becomes one line and an exit code."""
    from multispin.cli import commands, config

    commands.register(app)
    config.configure(app)
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except MultispinError as error:
        print(f"error: {error}", file=sys.stderr)
        curable = isinstance(error, BadInput) or error.code in CURABLE_CODES
        sys.exit(2 if curable else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"at {error.filename}" if error.filename else "where the output goes"
        print(f"error: no space left on the disk {where}", file=sys.stderr)
        _drop_output()
        sys.exit(1)


def _drop_output() -> None:
    """What is left of it: else Python fails to write it once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
