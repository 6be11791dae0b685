"""The `ovstrans` program: runs one subcommand, turns errors into one line and an exit status.

Only the module of the subcommand is imported; `cli.app` is all of them together, for the help, --version and
completion. Nothing is imported at the top here that takes time: before `main` runs, an interrupt cannot be answered.
No module of a command imports torch, numpy or matplotlib at its top.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import FrameType
from typing import Any

from ovstrans.cli import INTERRUPTED, TERMINATED

COMMANDS: Mapping[str, str] = {
    "prune": "Prune a CLIP image encoder into a mask that serves every framework.",
    "analyze": "Fit a power law to the spectrum of every layer and plan which layers to freeze.",
    "finetune": "Fine-tune a segmenter on a CLIP, with a mask and a freeze plan in force.",
    "bench": "Count parameters and multiply-accumulates, and measure mIoU, with one counter for all targets.",
    "predict": "Segment images by any class names.",
    "export": "Move weights: write a checkpoint, mask or pruned CLIP in another format, or import a foreign one.",
    "inspect": "Say what files are, from what they were made, and whether they are intact.",
    "demo": "Prune, analyze, fine-tune and bench the bundled model: dense, under a random mask and under an IMP mask.",
    "data": "List, check, show and prepare datasets.",
    "recipes": "List, show and copy recipes: TOML files with every hyper-parameter of a run.",
    "models": "List the CLIPs that can be pruned.",
}
"""The subcommands in the order of the help, each with the first sentence of its own help.

NAME is the module `cli.NAME` with a function NAME or a Typer `app`.
"""

HELP_FLAGS = ("-h", "--help")

_AGAIN_SECONDS = 0.5
_PLACE = "input or output"


class _Terminated(BaseException):
    """SIGTERM, as an exception, so that `finally` blocks clean up."""


def main() -> None:
    """Entry point of the console script; ends the process with the documented exit status."""
    if "RANK" in os.environ:  # under torchrun, where DDP would advise us on its arguments from every process
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGTERM, _terminate)
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # a second one, while the first was being answered
        status = INTERRUPTED
    except _Terminated:
        status = TERMINATED
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on one ends the process without a word
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run one command line; returns 0 done, 1 our bug, 2 bad input, 3 check failed, 130/143 interrupted."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return _stopped("interrupted", INTERRUPTED)
    except _Terminated:
        return _stopped("terminated", TERMINATED)
    finally:
        # A caller in Python sees no notices after the command; an interrupted import may have left no console.
        getattr(sys.modules.get("ovstrans.console"), "hide_logs", lambda: None)()


def _run(arguments: list[str]) -> int:
    import typer

    from ovstrans import console
    from ovstrans.cli import common
    from ovstrans.errors import OvstransError
    from ovstrans.files import storage_fault

    try:
        _refuse_empty(arguments)
        result = invoke(arguments)
    except OvstransError as error:
        if common.debugging():
            raise
        console.error(common.in_flags(str(error)))
        return error.exit_status
    except typer.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        # The reader went away (`| head`); point stdout elsewhere so that the exit is quiet.
        sys.stdout = None
        return 0
    except OSError as error:  # a name too long, a full disk: whatever the system refuses
        if common.debugging():
            raise
        console.error(f"{error.filename or _PLACE}: {error.strerror or error}")
        return 2
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error of click's
            _show_usage(error, arguments)
            return int(error.exit_code)
        if common.debugging():
            raise
        reason = storage_fault(error)
        if reason:
            console.error(f"{_PLACE}: {reason}")
            return 2
        console.error(
            f"{type(error).__name__}: {error} (this is a bug in ovstrans; run again with --debug for the traceback)"
        )
        return 1
    if result == INTERRUPTED:  # typer's own answer to an interrupt
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def invoke(arguments: list[str]) -> Any:
    """Run a subcommand alone; anything else on the command line is for the program as a whole."""
    if arguments and arguments[0] in COMMANDS:
        name, *rest = arguments
        command = load_command(name)
        if hasattr(command, "commands") or not {*rest}.isdisjoint(HELP_FLAGS):
            from ovstrans.cli.app import complete_help

            complete_help(command, name)
        settings = {"help_option_names": [*HELP_FLAGS]}
        return command.main(rest, prog_name=f"ovstrans {name}", standalone_mode=False, **settings)
    from ovstrans.cli.app import app

    return app(arguments, prog_name="ovstrans", standalone_mode=False)


def load_command(name: str) -> Any:
    """Import a subcommand; returns its click command."""
    import typer
    from typer.main import get_command

    module: Any = import_module(f"ovstrans.cli.{name}")
    program = getattr(module, "app", None)
    if program is None:
        program = typer.Typer(add_completion=False)
        program.command(name, cls=getattr(module, "COMMAND_CLASS", None))(getattr(module, name))
    command = get_command(program)
    command.name = name
    return command


def _refuse_empty(arguments: Sequence[str]) -> None:
    """No option and no argument may be empty: a path would quietly become the working directory."""
    from ovstrans.errors import InputError

    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument == "" or re.fullmatch(r"--[a-z-]+=", argument):
            name = argument[:-1] or (before if before.startswith("-") else "an argument")
            raise InputError(f"{name}: its value is empty; give one, or leave it out")


def _show_usage(error: Any, arguments: Sequence[str]) -> None:
    """A usage error in one line; the help itself where a command was called without anything."""
    from typer.main import get_command

    from ovstrans import console
    from ovstrans.cli.app import app

    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    name, command = "ovstrans", get_command(app)
    for word in arguments:
        found = command.get_command(None, word) if hasattr(command, "get_command") else None
        if found is None:
            break
        name, command = f"{name} {word}", found
    message = " ".join(error.format_message().split()).rstrip(".")
    console.error(f"{name}: {message} (try {name} --help)")


def _stopped(word: str, status: int) -> int:
    _deliver_again(0.0)
    from ovstrans import console

    console.error(word)
    return status


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _require_delivery(frame, _interrupt)
    raise KeyboardInterrupt


def _terminate(signum: int, frame: FrameType | None) -> None:
    _require_delivery(frame, _terminate)
    raise _Terminated


def _require_delivery(frame: FrameType | None, handler: Any) -> None:
    """Some modules swallow whatever is raised while they are imported: then come again a moment later."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    if frame is not None and hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, handler)
        _deliver_again(_AGAIN_SECONDS)


def _deliver_again(seconds: float) -> None:
    """Set the alarm, or with 0 take it back."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
