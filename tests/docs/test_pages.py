"""The pages say nothing that is not so: commands, options, names, files, recipes and code blocks."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import ovstrans
from ovstrans.datasets.description import read_description
from ovstrans.recipes.load import flatten, load_recipe, recipe_names
from tests.docs.pages import DOCS, EXAMPLES, README, ROOT, Block, blocks, load_script, pages

COMMANDS = dict(load_script("cli_reference")["leaf_commands"]())
LONGEST_README = 1200
PAGES = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))


def command_lines(block: Block) -> Iterator[list[str]]:
    """Yield the words of every `ovstrans` command in a block of shell."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for start in ("ovstrans", "torchrun"):
            if words[:1] == [start]:
                yield words[words.index("ovstrans") + 1 :]


def inline_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every command in backticks in the text, as far as they can be read."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for code in re.findall(r"`ovstrans ([^`]+)`", text):
        yield code.split()


def check_command(words: list[str], where: str) -> None:
    name = next((" ".join(words[:length]) for length in (2, 1) if " ".join(words[:length]) in COMMANDS), None)
    assert (
        name is not None
        or words[0] in ("--version", "--install-completion", "--show-completion", "data", "models", "recipes")
        or not words[0].islower()
    ), where
    if name is None:
        return
    known = {option for each in COMMANDS[name].params for option in [*each.opts, *each.secondary_opts]} | {"--help"}
    for word in words:
        if word.startswith("-") and len(word) > 1:
            assert word.partition("=")[0] in known, f"{where}: {name} has no {word}"


@PAGES
def test_commands_and_their_options_exist(page: Path) -> None:
    for block in blocks(page, "sh"):
        for words in command_lines(block):
            check_command(words, f"{page.name}: {' '.join(words)}")
    for words in inline_commands(page):
        check_command(words, f"{page.name}: {' '.join(words)}")


@PAGES
def test_recipes_and_their_keys_exist(page: Path) -> None:
    keys = {key for name in recipe_names() for key in flatten(load_recipe(name))}
    text = page.read_text(encoding="utf-8")
    for change in re.findall(r"--(?:prune-)?set ([a-z_]+\.[a-z_]+)=", text):
        assert change in keys, change
    for name in re.findall(r"--recipe ([a-z][\w-]+)(?:\s|`)", text):
        assert name in recipe_names(), name


@PAGES
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:ovstrans|tests|docs|checkpoints)/[\w./-]*)`", text)
    for name in named:
        if "NAME" not in name and "MODEL" not in name:
            assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m (tests(?:\.\w+)+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


@PAGES
def test_names_of_the_package_exist(page: Path) -> None:
    for name in re.findall(r"\bovstrans\.([A-Za-z_]\w*)", page.read_text(encoding="utf-8")):
        known = name in ovstrans.__all__ or (ROOT / "ovstrans" / name).is_dir()
        known = known or (ROOT / "ovstrans" / f"{name}.py").exists()
        # Formats (`ovstrans.mask/1`) and the bundled checkpoints go by such names too.
        formats = ("mask", "weights", "checkpoint", "alpha", "report", "prediction", "bundled")
        assert known or name in formats, name


@PAGES
def test_python_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        if not block.text.startswith("--8<--"):
            ast.parse(block.text)


def test_descriptions_of_datasets_are_read(tmp_path: Path) -> None:
    found = [block for page in pages() for block in blocks(page, "toml")]
    assert len(found) >= 4
    for block in found:
        (tmp_path / "dataset.toml").write_text(block.text, encoding="utf-8")
        assert read_description(tmp_path / "dataset.toml").vocabulary


def test_readme_is_short_and_names_the_first_steps() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) <= LONGEST_README
    assert "make demo" in text and "make test" in text
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / link).exists(), link


def test_every_example_is_on_a_page() -> None:
    text = (DOCS / "guide" / "python.md").read_text(encoding="utf-8")
    for example in EXAMPLES.glob("*.py"):
        assert f'--8<-- "docs/examples/{example.name}"' in text, example.name


def test_ten_questions_are_answered() -> None:
    text = (DOCS / "guide" / "questions.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\*\*.*\?\*\*$", text, re.MULTILINE)) >= 10
