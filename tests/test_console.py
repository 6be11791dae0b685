"""Progress and tables, piped."""

import io
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

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


NAMES = st.text(alphabet="ab[]/\\\\:= @#'\"$rd", min_size=1, max_size=12).filter(lambda text: text.strip() == text)
ODD = ["street [/v2]", "run[red]x", "[bold]", "[/]", "a:car:b", "[link=x]y", "\\\\[", "x\\\\"]


@given(NAMES)
@pytest.mark.parametrize("odd", ODD)
def test_names_are_shown_as_they_are_in_every_place(odd, name):
    """Title, columns, cells and caption of a table; messages, warnings, errors; progress."""
    for text in (odd, name):
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(console, "_PLAIN_SECONDS", 0.0)
            console.table(
                f"title {text}", [f"first {text}", f"head {text}"], [[f"cell {text}", 1]], caption=f"low {text}"
            )
            for show in (console.say, console.warn, console.error):
                show(f"{show.__name__} {text}")
            console.say("x", heading=f"bold {text}")
            with console.progress_bar() as progress:
                ProgressReporter(progress, f"task {text}", 1).advance()
        for word in ("title", "first", "head", "cell", "low"):
            assert f"{word} {text}" in out.getvalue()
        for word in ("say", "warn", "error", "bold", "task"):
            assert f"{word} {text}" in err.getvalue()


def test_the_live_bar_shows_names_as_they_are(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with console.progress_bar() as progress:
        ProgressReporter(progress, "evaluate run[red]x on [/v2]", 2).advance()
    assert "evaluate run[red]x on [/v2]" in err.getvalue()


def test_names_move_no_cursor_and_break_no_line(capsys):
    odd = "a\x1b[31mb\nc\rd\x85e\u2028f\udce9g"
    shown = "a\\x1b[31mb\\nc\\rd\\x85e\\u2028f\\udce9g"
    console.table(odd, [odd], [[odd]], caption=odd)
    console.error(odd)
    console.show(odd)
    out, err = capsys.readouterr()
    assert out.count(shown) == 4 and err == f"error: {shown}\n"
    assert "\\udce9g" in out.splitlines()[-1]  # a result is left as it is, but for what cannot be encoded


def narrow(capsys, monkeypatch, width, *arguments, **options):
    monkeypatch.setenv("COLUMNS", str(width))
    console.table(*arguments, **options)
    return capsys.readouterr().out.splitlines()


WIDE = ["", "runs/street-dense", "runs/street-random-mask", "runs/street-imp-mask", "gkc-rn50-coco"]
FIGURES = [["total params", "2.169 M", "2.169 M", "2.169 M", "44.1 M"], ["effective MACs", *["1.04 G (-50 %)"] * 4]]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_wide_tables_are_shown_in_parts_and_no_name_breaks_into_many_lines(capsys, monkeypatch, width):
    lines = narrow(capsys, monkeypatch, width, "bench", WIDE, FIGURES, split=True)
    assert all(cell_len(line) <= width for line in lines)
    tops = [number for number, line in enumerate(lines) if line.startswith("┏")]
    rules = [number for number, line in enumerate(lines) if line.startswith("┡")]
    assert all(rule - top <= 3 for top, rule in zip(tops, rules, strict=True))  # names take two lines at most
    assert sum(line.count("2.169 M") for line in lines) == 3 and sum("44.1 M" in line for line in lines) == 1
    assert sum("total params" in line for line in lines) == len(tops) == (1 if width >= 100 else 2)


def test_optional_columns_give_way_and_are_named(capsys, monkeypatch):
    columns = ["layer", "shape", "xmin", "alpha"]
    rows = [["layer2.0.downsample.0", "512x512x3x3", "0.0123", "2.345 ± 0.12"]]
    lines = narrow(capsys, monkeypatch, 60, "t", columns, rows, optional=["xmin", "shape"])
    assert not any("0.0123" in line for line in lines) and any("512x512x3x3" in line for line in lines)
    assert lines[-1] == "a wider terminal also shows: xmin"
    lines = narrow(capsys, monkeypatch, 120, "t", columns, rows, optional=["xmin", "shape"])
    assert any("0.0123" in line for line in lines) and "wider" not in lines[-1]


@given(
    st.lists(
        st.sampled_from(["a", "some words", "a/long/path/name.txt", "wwwwwwwwwwwwwwwwwwwwww", "路面电车"]), min_size=1
    )
)
def test_wrapping_keeps_every_letter_and_the_width(words):
    text = "".join(words)
    for width in (4, 7, 30):
        lines = console._wrap(text, width).split("\n")
        assert all(cell_len(line) <= width for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("columns", [None, "80"])
def test_pipes_have_no_width_unless_one_is_set(capsys, monkeypatch, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    console.table("t", ["a", "b"], [["x" * 70, "y" * 70]])
    shown = capsys.readouterr().out
    assert ("x" * 70 in shown) == (columns is None)
