"""The `ovstrans` program: finds the subcommand, turns errors into one line and an exit status.

Importing this module must stay cheap: no torch, numpy or matplotlib at the top of any file here.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from ovstrans.cli import analyze, bench, common, demo, finetune, inspect, prune, recipes
from ovstrans.errors import OvstransError
from ovstrans.version import __version__

app = typer.Typer(
    name="ovstrans",
    help="Make open-vocabulary segmentation cheap: prune CLIP once, transfer the mask, count honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(prune.prune)
app.command()(analyze.analyze)
app.command()(finetune.finetune)
app.command()(bench.bench)
app.command()(inspect.inspect)
app.command()(demo.demo)
app.add_typer(recipes.app, name="recipes")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ovstrans {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of the program itself."""


class _Terminated(BaseException):
    """SIGTERM, as an exception, so that `finally` blocks clean up."""


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def main() -> None:
    """Entry point of the console script; ends the process with the documented exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns 0 done, 1 our bug, 2 bad input, 3 check failed, 130/143 interrupted."""
    from ovstrans import console

    try:
        result = app(arguments, standalone_mode=False)
        if result == 130:  # typer's own answer to an interrupt
            console.error("interrupted")
        return result if isinstance(result, int) else 0
    except OvstransError as error:
        if common.debugging():
            raise
        console.error(str(error))
        return error.exit_status
    except (KeyboardInterrupt, typer.Abort):
        console.error("interrupted")
        return 130
    except _Terminated:
        console.error("terminated")
        return 143
    except BrokenPipeError:
        # The reader went away (`| head`); point stdout elsewhere so that the exit is quiet.
        sys.stdout = None  # type: ignore[assignment]
        return 0
    except OSError as error:  # a name too long, a full disk: whatever the system refuses
        if common.debugging():
            raise
        console.error(f"{error.filename or 'input or output'}: {error.strerror or error}")
        return 2
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of click's
            error.show()
            return int(error.exit_code)
        if common.debugging():
            raise
        console.error(
            f"{type(error).__name__}: {error} (this is a bug in ovstrans; run again with --debug for the traceback)"
        )
        return 1


if __name__ == "__main__":
    main()
