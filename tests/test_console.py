"""Progress and tables, piped."""

import logging

from ovstrans import console
from ovstrans.progress import ProgressReporter


def test_piped_progress_is_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(console, "_PLAIN_SECONDS", 0.0)
    with console.progress_bar() as progress:
        reporter = ProgressReporter(progress, "train", 3)
        for _ in range(3):
            reporter.advance(loss=0.25)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train 1/3 loss 0.25")
    assert lines[-1].startswith("train 3/3")
    assert all("\x1b" not in line for line in lines)


def test_quiet_keeps_results_and_errors(capsys):
    console.set_quiet(True)
    try:
        console.say("hello")
        with console.progress_bar() as progress:
            ProgressReporter(progress, "train", 1).advance()
        console.error("it [failed]")
        console.show("result")
    finally:
        console.set_quiet(False)
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert err == "error: it [failed]\n"


def test_tables_show_brackets_as_they_are(capsys):
    console.table("T", ["name", "value"], [["[a]", 1.5]])
    assert "[a]" in capsys.readouterr().out


def test_messages_are_shown_as_they_are(capsys):
    console.say("wrote q[/b]/a:x:b.json")
    console.error("--freeze quantile:x: [/b] is not a number")
    err = capsys.readouterr().err
    assert err == "wrote q[/b]/a:x:b.json\nerror: --freeze quantile:x: [/b] is not a number\n"


def test_log_records_are_shown_with_flags_and_warnings_even_when_quiet(capsys):
    logger = logging.getLogger("ovstrans.test")
    console.show_logs(lambda message: message.replace("`mask`", "--mask"))
    console.show_logs(lambda message: message.replace("`mask`", "--mask"))  # once more is not twice the output
    logger.info("found %s", "`mask`")
    console.set_quiet(True)
    try:
        logger.info("hidden")
        logger.warning("`mask` [odd]")
    finally:
        console.set_quiet(False)
    assert capsys.readouterr() == ("", "found --mask\nwarning: --mask [odd]\n")
