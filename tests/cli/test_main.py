"""The program: exit statuses, one-line errors, and a fast --help."""

import subprocess
import sys

import pytest

from ovstrans.cli import main
from ovstrans.errors import CheckFailed, InputError

COMMANDS = ("prune", "analyze", "finetune", "bench", "inspect", "demo", "recipes")


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

    monkeypatch.setattr(main, "app", fail)
    assert main.run([]) == status
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_usage_errors_exit_with_2(capsys):
    assert main.run(["prune", "--no-such-option"]) == 2
    assert main.run(["nonsense"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_version(capsys):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ovstrans 0.")
