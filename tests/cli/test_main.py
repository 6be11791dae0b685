"""The program: exit statuses, one-line errors, and a fast --help."""

import logging
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from ovstrans import console
from ovstrans.cli import main
from ovstrans.errors import CheckFailed, InputError, counted
from ovstrans.reports.lock import CostChange, LockResult
from ovstrans.spectrum.plan import FreezePlan

COMMANDS = ("prune", "analyze", "finetune", "bench", "inspect", "demo", "models", "recipes")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_answers_without_torch(command):
    script = (
        "import sys; from ovstrans.cli.main import run; status = run([*sys.argv[1:], '--help']); "
        "heavy = {'torch', 'numpy', 'matplotlib', 'open_clip'} & set(sys.modules); "
        "sys.exit(f'{heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def help_seconds(*command: str) -> float:
    """Return the least seconds of processor time that `--help` takes in four attempts."""
    seconds = []
    for _ in range(4):
        before = os.times()
        subprocess.run([sys.executable, "-m", "ovstrans", *command, "--help"], capture_output=True, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(seconds)


@pytest.mark.parametrize("command", [(), ("prune",), ("bench",), ("data", "list")])
def test_help_is_fast(command: tuple[str, ...]) -> None:
    """It takes 0.15 to 0.22 s; other work on the machine slows it down."""
    assert help_seconds(*command) < 0.35


def test_only_the_command_that_runs_is_imported() -> None:
    """Nor what checks the values of options, pydantic in newer versions of typer, while help is shown."""
    script = (
        "import sys; from ovstrans.cli.main import run; run(sys.argv[1:]); "
        "print([name for name in sys.modules if name in ('ovstrans.cli.prune', 'ovstrans.cli.bench', 'pydantic')])"
    )
    for arguments, expected in ((["--help"], []), (["prune", "-h"], ["ovstrans.cli.prune"])):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == str(expected), arguments


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_the_help_of_the_program_has_the_first_sentence_of_each_commands_own(name: str) -> None:
    assert " ".join(main.load_command(name).help.split("\n\n")[0].split()) == main.COMMANDS[name]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("bad"), 2),
        (CheckFailed("moved"), 3),
        (KeyboardInterrupt(), 130),
        (main._Terminated(), 143),
        (ValueError("x"), 1),
    ],
)
def test_exit_statuses(monkeypatch, capsys, error, status):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("ovstrans.cli.app.app", fail)
    assert main.run([]) == status
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "command", "words"),
    [
        (["prune", "--foo"], "ovstrans prune", "No such option: --foo"),
        (["prune", "--out"], "ovstrans prune", "Option '--out' requires an argument"),
        (["recipes", "copy", "--out"], "ovstrans recipes copy", "requires an argument"),
        (["nonsense"], "ovstrans", "No such command 'nonsense'"),
        (["inspect"], "ovstrans inspect", "Missing argument"),
        (["prune", "--steps", "few"], "ovstrans prune", "'--steps'"),
        (["analyze", "--seed", str(2**63)], "ovstrans analyze", "'--seed'"),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_2(capsys, arguments, command, words):
    assert main.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {command}: ") and words in captured.err
    assert captured.err.endswith(f"(try {command} --help)\n") and captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["finetune", "--out", ""], "--out"),
        (["finetune", "--out="], "--out"),
        (["analyze", "--plot-esd", ""], "--plot-esd"),
        (["inspect", ""], "an argument"),
    ],
)
def test_nothing_may_be_empty(capsys, tmp_path, monkeypatch, arguments, name):
    monkeypatch.chdir(tmp_path)
    assert main.run(arguments) == 2
    assert capsys.readouterr().err == f"error: {name}: its value is empty; give one, or leave it out\n"
    assert not list(tmp_path.iterdir())


def test_python_runs_the_package():
    done = subprocess.run(
        [sys.executable, "-m", "ovstrans", "inspect", "nosuch"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: nosuch: ") and not done.stdout


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize(("name", "status", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_during_the_imports_is_one_line(tmp_path, swallowed, name, status, word):
    """Before the command line is read, and where the module that is being imported swallows the exception."""
    wait = "except BaseException:\n    time.sleep(60)\n" if swallowed else "finally:\n    pass\n"
    (tmp_path / "typer.py").write_text(f"import signal, time\ntry:\n    signal.raise_signal(signal.{name})\n{wait}")
    done = subprocess.run(
        [sys.executable, "-m", "ovstrans.cli.main", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (status, f"error: {word}\n")


def test_processes_under_torchrun_keep_ddps_advice_to_themselves():
    script = "import os; from ovstrans.cli import main; main.run = lambda words: print(level()) or 0; "
    script += "level = lambda: os.environ.get('TORCH_CPP_LOG_LEVEL'); main.main()"
    alone = {key: value for key, value in os.environ.items() if key not in ("RANK", "TORCH_CPP_LOG_LEVEL")}
    for given, expected in (
        ({}, "None"),
        ({"RANK": "1"}, "ERROR"),
        ({"RANK": "1", "TORCH_CPP_LOG_LEVEL": "INFO"}, "INFO"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**alone, **given}
        )
        assert done.stdout.strip() == expected


def test_version(capsys):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ovstrans 0.")


def test_notices_of_the_library_are_shown_during_a_command_only(capsys, monkeypatch):
    def work(*args, **kwargs):
        console.show_logs()
        logging.getLogger("ovstrans.training").info("going on")

    monkeypatch.setattr("ovstrans.cli.app.app", work)
    assert main.run([]) == 0
    logging.getLogger("ovstrans.training").warning("too late")
    assert capsys.readouterr().err == "going on\n"


@pytest.mark.parametrize("arguments", [(name,) for name in COMMANDS] + [("data", "check"), ("data", "prepare")])
def test_paragraphs_of_the_help_wrap_at_the_terminals_width_alone(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line of a paragraph is short only if the next word has no room in it."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert main.run([*arguments, "--help"]) == 0
    prose = capsys.readouterr().out.partition("╭")[0].splitlines()
    for line, following in pairwise(prose):
        if line.strip() and following.strip() and not following.startswith("  "):
            assert len(line.rstrip()) + 1 + len(following.split()[0]) > 79, line


@pytest.mark.parametrize(
    ("number", "words", "shown"),
    [
        (1, ("target",), "1 target"),
        (0, ("target",), "0 targets"),
        (1, ("class", "classes"), "1 class"),
        (1234, ("class", "classes"), "1,234 classes"),
    ],
)
def test_counted_nouns(number: int, words: tuple[str, ...], shown: str) -> None:
    assert counted(number, *words) == shown


def test_no_text_counts_a_single_thing_in_the_plural() -> None:
    """The nouns that commands count: of targets, counts, images, classes, layers, segments."""
    plan = FreezePlan(rule="count:1", threshold=None, frozen=("layer1.0.conv1",))
    assert "1 layer frozen" in repr(plan)
    assert "1 change in 1 target)" in repr(LockResult(Path("a.json"), ("x",), (CostChange("x", "t", "k", 1, 2),), 1))
