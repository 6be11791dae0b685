"""Parameters in messages of the library become flags of the command."""

from __future__ import annotations

import pytest
from typer.main import get_command

from ovstrans.cli.app import COMMANDS, app
from ovstrans.cli.common import flag_names, name_flags

FLAGS = {
    "mask": ("--mask", "--no-mask"),
    "image_size": ("--image-size", ""),
    "settings": ("--set", ""),
    "plot": ("--plot", "--no-plot"),
}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`mask`: no such file", "--mask: no such file"),
        ("`image_size=10x10`: too small", "--image-size 10x10: too small"),
        ("`plot=False` or `plot=True`", "--no-plot or --plot"),
        ("leave out `mask=False`", "leave out --no-mask"),
        ("use `optimizer.lr=0.1`", "use --set optimizer.lr=0.1"),
        ("`optimizer.lr` is 3", "`optimizer.lr` is 3"),
        ("run `ovstrans data list`; `unknown=1`", "run `ovstrans data list`; `unknown=1`"),
    ],
)
def test_parameters_are_shown_as_flags(message: str, shown: str) -> None:
    assert name_flags(message, FLAGS) == shown


def test_without_a_command_nothing_changes() -> None:
    assert name_flags("`mask`: no such file", {}) == "`mask`: no such file"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("data", "models", "recipes")])
def test_every_command_tells_its_flags(name: str) -> None:
    command = get_command(app).get_command(None, name)  # type: ignore[attr-defined, arg-type]
    flags = flag_names(command)
    assert flags["debug"][0] == "--debug" and all(on.startswith("-") for on, _ in flags.values())
