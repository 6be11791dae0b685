"""Options that every subcommand shares, what each does with them first, and messages in the words of the command line.

The library names parameters in backticks, `mask` or `init=pruned`; a user of a command knows them as --mask and
--init pruned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ovstrans.cli import completion
from ovstrans.errors import counted as counted

if TYPE_CHECKING:
    import torch

    from ovstrans.costs import estimate as costs
    from ovstrans.recipes.schema import Recipe

Device = Annotated[
    str,
    typer.Option("--device", help="auto, cpu or cuda.", autocompletion=completion.DEVICES, rich_help_panel="Common"),
]
Seed = Annotated[
    int,  # torch takes seeds of 63 bits
    typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything random (0).", rich_help_panel="Common"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only results and errors.", rich_help_panel="Common")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks instead of one line.", rich_help_panel="Common")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there already.", rich_help_panel="Common")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the recipe, MACs, memory and time of the run, and do nothing else.")
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH|-", help="Also write the result as JSON.", rich_help_panel="Common"),
]
Pretrained = Annotated[
    str | None,
    typer.Option("--pretrained", metavar="TAG|FILE", help="open_clip tag, or a .safetensors / state-dict file."),
]
RecipeSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe: optimizer.lr=0.001. Repeatable."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help="Where published datasets are; default $OVSTRANS_DATASETS, $DETECTRON2_DATASETS or ./datasets.",
        rich_help_panel="Common",
    ),
]

_COMPLETIONS = {
    "data.dataset": completion.DATA,
    "distill.loss": completion.LOSSES,
    "training.freeze": completion.FREEZE_RULES,
}
"""Completions of recipe keys, besides those with a fixed choice of values."""

Command = TypeVar("Command", bound=Callable[..., Any])


def recipe_options(
    kind: type[Recipe], *, after: str, panel: str, panels: Mapping[str, str] | None = None
) -> Callable[[Command], Command]:
    """Decorate a command whose `**options` are the options of a recipe.

    Args:
        kind: Kind of recipe.
        after: Parameter of the command behind which the options are listed.
        panel: Panel of the help that shows the options, "" for the one without a title.
        panels: Other panels, by section or by full name of the key.
    """
    from ovstrans.recipes.options import accepts_options

    def annotate(key: Any, value_type: type) -> Any:
        section = key.name.partition(".")[0]
        shown = (panels or {}).get(key.name, (panels or {}).get(section, panel))
        flag = "--" + key.option.replace("_", "-")
        return Annotated[
            value_type | None,
            typer.Option(
                flag,
                help=key.help,
                metavar=key.metavar or None,
                rich_help_panel=shown or None,
                autocompletion=_COMPLETIONS.get(key.name)
                or (completion.complete_words(key.choices) if key.choices else None),
            ),
        ]

    return accepts_options(kind, after=after, annotate=annotate)


_PARAMETER = re.compile(r"`([a-z_]+(?:\.[a-z_0-9]+)*)(?:=([^`]*))?`")

_debug = False
_command: Any = None


def start(*, quiet: bool = False, debug: bool = False) -> None:
    """Apply the common switches; the first line of every command."""
    global _debug, _command
    from importlib import import_module

    from ovstrans import console

    base = typer.Context.__mro__[1].__module__  # of click, or of the copy of click that newer versions of typer carry
    context = import_module(f"{base.rpartition('.')[0]}.globals").get_current_context(silent=True)
    _debug, _command = debug, None if context is None else context.command
    console.set_quiet(quiet)
    console.show_logs(in_flags)


def in_flags(message: str) -> str:
    """Return a message of the library with its parameters named as flags of the running command."""
    return name_flags(message, {} if _command is None else flag_names(_command))


def flag_names(command: Any) -> dict[str, tuple[str, str]]:
    """Map each option's parameter name to its flag and to the flag that turns it off ("" where there is none).

    Args:
        command: A click command.
    """
    options = {each.name: each for each in command.params if each.param_type_name == "option"}
    off = {name: each.secondary_opts[0] for name, each in options.items() if each.secondary_opts}
    off |= {name.removeprefix("no_"): each.opts[-1] for name, each in options.items() if name.startswith("no_")}
    return {name: (each.opts[-1], off.get(name, "")) for name, each in options.items()}


def name_flags(message: str, flags: Mapping[str, tuple[str, str]]) -> str:
    """Replace the parameters in a message by flags.

    `mask` becomes --mask, `init=pruned` --init pruned, `resume=True` --resume, `plot=False` --no-plot. A dotted recipe
    key with a value, `optimizer.lr=0.1`, becomes --set optimizer.lr=0.1 where the command has --set. What is no
    parameter of the command stays as it is.
    """

    def flag_of(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if "." in name and value is not None and "settings" in flags:
            return f"{flags['settings'][0]} {name}={value}"
        if name not in flags:
            return match[0]
        on, off = flags[name]
        if value is None or value == "True":
            return on
        if value == "False" and off:
            return off
        return f"{on} {value}"

    return _PARAMETER.sub(flag_of, message)


def debugging() -> bool:
    """Return whether --debug was given."""
    return _debug


def pick_device(name: str) -> torch.device:
    """Return the torch device of --device; see `environment.pick_device`."""
    from ovstrans import environment

    return environment.pick_device(name)


def check_json(destination: str | None, *, force: bool = False, outputs: Iterable[Path | None] = ()) -> Path | None:
    """Refuse a --json that could not be written, before any work.

    Args:
        destination: Value of --json.
        force: Whether an existing file may be replaced.
        outputs: Other files and folders that the command writes; None stands for one that was not asked for.

    Returns:
        The file, or None if JSON goes to stdout or nowhere.

    Raises:
        InputError: The file exists, cannot be written, is one of `outputs`, or is one of the folders in their paths.
    """
    from ovstrans import files
    from ovstrans.errors import InputError

    if destination is None or destination == "-":
        return None
    path = Path(destination)
    for output in outputs:
        if output is not None and path.resolve() in (output.resolve(), *output.resolve().parents):
            raise InputError(f"`json={destination}`: is in the way of {output}, which the command writes; give another")
    return files.check_output(path, force=force, option="json")


def emit_json(destination: str | None, value: Any, *, force: bool = False) -> None:
    """Write `value` to a file, or to stdout for "-"; nothing where no destination is given."""
    from ovstrans import console, files

    if destination is None:
        return
    if destination == "-":
        console.show(files.json_text(value))
    else:
        files.write_json(files.check_output(Path(destination), force=force, option="json"), value)


def finish(*steps: Callable[[], object]) -> None:
    """Run the last steps of a command in order, all of them even if one fails.

    So a picture that cannot be written costs neither the table nor the JSON.

    Raises:
        OvstransError: The last failure; earlier ones are shown as they occur.
    """
    from ovstrans import console
    from ovstrans.errors import InputError, OvstransError
    from ovstrans.files import storage_fault

    failures: list[OvstransError] = []
    for step in steps:
        try:
            step()
        except OvstransError as error:
            failures.append(error)
        except BrokenPipeError:
            raise
        except Exception as error:
            reason = storage_fault(error)
            if not reason:
                raise
            failures.append(InputError(f"{getattr(error, 'filename', None) or 'output'}: {reason}"))
    for failure in failures[:-1]:
        console.error(in_flags(str(failure)))
    if failures:
        raise failures[-1]


def show_dry_run(run: costs.DryRun, json: str | None = None, *, force: bool = False) -> None:
    """Show what a run would do: its recipe as TOML that can be saved and used, the rest as comments above it."""
    from ovstrans import console
    from ovstrans.recipes.write import toml_text

    facts = run.facts()
    wide = max(map(len, facts))
    comments = [f"# {name.ljust(wide)}  {text}" for name, text in facts.items()]
    if json != "-":
        console.show("\n".join(["# dry run: nothing was written", *comments, "", toml_text(run.recipe)]))
    emit_json(json, run.to_json(), force=force)
