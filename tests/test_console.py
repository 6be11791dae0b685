"""Progress and tables, piped."""

from ovstrans import console


def test_piped_progress_is_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr(console, "_PLAIN_SECONDS", 0.0)
    with console.progress("train", 3) as bar:
        for _ in range(3):
            bar.advance(loss=0.25)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train 1/3 loss 0.25")
    assert lines[-1].startswith("train 3/3")
    assert all("\x1b" not in line for line in lines)


def test_quiet_keeps_results_and_errors(capsys):
    console.set_quiet(True)
    try:
        console.say("hello")
        with console.progress("train", 1) as bar:
            bar.advance()
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
