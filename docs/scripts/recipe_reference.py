"""The reference of recipes as Markdown, made from their schema and from the recipes that are shipped.

mkdocs loads this file as a hook and gets the page `reference/configuration.md` from it.
`python docs/scripts/recipe_reference.py` prints the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = "reference/configuration.md"
OPEN_SECTIONS = ("model", "distill")
"""Sections that also take the options of a framework or loss."""
RECIPES = Path(__file__).parents[2] / "ovstrans" / "recipes"

_INTRODUCTION = """\
# Recipes

A recipe is a TOML file with every setting of a run. `ovstrans recipes list` shows those that are shipped, `ovstrans
recipes show NAME` prints one, `ovstrans recipes copy NAME` makes a file to edit.

The values of a run come from, each replacing what came before:

1. the recipe: `--recipe NAME` or a file; by default the one for the framework or model;
2. settings: `--set optimizer.lr=0.001`, as often as you like;
3. options such as `--steps`; the tables below name them.

In Python: `ovstrans.finetune("gkc", recipe="gkc-rn50-coco", settings={"optimizer.lr": 0.001}, steps=100)`.

A key that `prune` and `finetune` share means the same in both. Every value is checked against its type and range before
any work begins. The result is saved as `recipe.toml` in the run folder, and inside masks and checkpoints.

This page is generated from `ovstrans/recipes/schema.py` and the recipe files.
"""


def recipe_reference() -> str:
    """Return the page as Markdown."""
    from ovstrans.recipes import schema

    lines = [_INTRODUCTION]
    for kind in (schema.FinetuneRecipe, schema.PruneRecipe):
        lines += [f"## Keys of {kind.command}", "", *_keys(schema, kind)]
    lines += ["## Shipped recipes", ""]
    for path in sorted(RECIPES.glob("*.toml")):
        lines += [f"### {path.stem}", "", "```toml", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines) + "\n"


def _keys(schema: Any, kind: Any) -> Iterator[str]:
    """Yield a table for each section of a kind of recipe."""
    keys = schema.keys_of(kind)
    for section in dict.fromkeys(name.partition(".")[0] for name in keys):
        yield from (f"### [{section}] of {kind.command}", "")
        yield "| key | value | required | option | meaning |"
        yield "|---|---|---|---|---|"
        for name, key in keys.items():
            if name.startswith(f"{section}."):
                flag = f"`--{key.option.replace('_', '-')}`" if key.option else ""
                required = "yes" if key.required else "no"
                yield f"| `{name.partition('.')[2]}` | {_value(key)} | {required} | {flag} | {_cell(key.help)} |"
        if section in OPEN_SECTIONS:
            yield from (
                "",
                "Every further key is an option of the framework or loss; the shipped recipes explain them.",
            )
        yield ""


def _value(key: Any) -> str:
    """Return the kind of value and its range in words."""
    kind = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text"}.get(key.type, "list")
    return _cell(f"{kind}, {key.range}" if key.range.strip() else kind)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def on_files(files: Any, config: Any) -> Any:
    """Add the page to the site; mkdocs calls this."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=recipe_reference()))
    return files


if __name__ == "__main__":
    print(recipe_reference(), end="")
