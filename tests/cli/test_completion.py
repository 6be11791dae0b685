"""Shell completion: what it offers, that it is fast, and that examples in the help are right."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time

import pytest

from ovstrans.cli import completion
from ovstrans.cli.app import COMMANDS, EXAMPLES, app
from ovstrans.clip.models import model_names
from ovstrans.datasets.catalog import DATASETS
from ovstrans.frameworks.registry import list_frameworks
from ovstrans.recipes.load import recipe_names
from ovstrans.recipes.schema import METHODS
from tests.docs.pages import load_script

LEAVES = dict(load_script("cli_reference")["leaf_commands"]())
SLOWEST = 0.4
"""Seconds that a completion may take."""


def complete(*words: str) -> tuple[list[str], float]:
    """Ask as bash does; returns the answers and the seconds of processor time."""
    line = " ".join(["ovstrans", *words])
    asked = {"_OVSTRANS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", "from ovstrans.cli.main import main; main()"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **asked},
    )
    after = os.times()
    assert done.stderr == "" and time.perf_counter() > start
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout.split(), used


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("",), set(COMMANDS)),
        (("prune", "RN50x1"), {"RN50x16", "RN50x16-quickgelu"}),
        (("prune", "--method", ""), set(METHODS)),
        (("prune", "--distill", "t"), {"text-guided"}),
        (("prune", "--recipe", ""), {name for name in recipe_names() if name.startswith("prune-")}),
        (("prune", "--precision", "f"), {"fp32", "fp16"}),
        (("finetune", ""), {"deeplabv3", "fcclip", "gkc"}),
        (("finetune", "--recipe", "gkc-r"), {"gkc-rn50-coco", "gkc-rn101-coco"}),
        (("finetune", "--model", "RN-"), {"RN-mini"}),
        (("finetune", "--data", "scenes"), {"scenes", "scenes-attr", "scenes-shift"}),
        (("bench", "RN101"), {"RN101", "RN101-quickgelu"}),
        (("bench", "--data", "ade"), {"ade20k-150", "ade20k-847"}),
        (("data", "check", "city"), {"cityscapes"}),
        (("recipes", "copy", "prune-m"), {"prune-mini", "prune-mini-regions"}),
        (("analyze", "--freeze", "q"), {"quantile:"}),
        (("models", "list", "convnext_t"), {"convnext_tiny"}),
    ],
)
def test_values_are_completed(words: tuple[str, ...], expected: set[str]) -> None:
    found, seconds = complete(*words)
    assert expected <= set(found) and all(word.startswith(words[-1]) for word in found)
    assert seconds < 2 * SLOWEST  # other work on the machine slows it down; `test_completion_is_fast` is strict


def test_completion_is_fast() -> None:
    assert min(complete("prune", "RN50x1")[1] for _ in range(3)) < SLOWEST


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_every_shell_is_shown(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from ovstrans.cli.main import main; main()", "--show-completion", shell],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert done.returncode == 0 and f"complete_{shell}" in done.stdout, done.stderr


def test_names_are_those_of_the_library() -> None:
    assert tuple(name for name in DATASETS if not name.startswith("folder:")) == completion.DATASETS
    assert completion.list_models()[0] == "RN-mini" and sorted(completion.list_models()) == sorted(model_names())
    assert set(completion.list_frameworks()) <= set(list_frameworks()) and "gkc" in completion.list_frameworks()


def test_completion_imports_nothing_heavy() -> None:
    script = (
        "import sys; from ovstrans.cli import completion as c; assert c.TARGETS('RN50') and c.DATA('sc'); "
        "assert c.LOSSES('f'); sys.exit(len({'torch', 'numpy', 'open_clip'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_command_has_examples() -> None:
    groups = {name.split()[0] for name in LEAVES if " " in name}
    assert set(EXAMPLES) == {"", *groups, *LEAVES}


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_examples_are_in_the_help_and_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.main import get_command

    from ovstrans.cli.main import run

    assert run([*name.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for line in EXAMPLES[name]:
        assert " ".join(line.split()) in shown, line
        program, *words = shlex.split(line)
        assert program == "ovstrans" and len(line) < 79
        command = get_command(app)
        while hasattr(command, "get_command"):
            command, words = command.get_command(None, words[0]), words[1:]
        command.make_context("ovstrans", list(words))  # raises a usage error if it does not parse
        assert name == "" or line.startswith(f"ovstrans {name}")


def test_the_epilog_is_in_the_reference() -> None:
    text = load_script("cli_reference")["cli_reference"]()
    for name in LEAVES:
        section = text.split(f"\n## ovstrans {name}\n")[1].split("\n## ")[0]
        assert all(line in section for line in EXAMPLES[name]), name
