"""References in docstrings and comments: every name of ours in backticks exists."""

from __future__ import annotations

import ast
import builtins
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from torch import nn

import ovstrans

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(ovstrans.__file__).parent
ROOT = PACKAGE.parent
FOLDERS = ("ovstrans", "tests", "docs", "checkpoints")

OUTSIDE = frozenset({"PIL"})
"""Names of other libraries and formats that no code of ours mentions."""

SUFFIXES = frozenset(
    {"csv", "exc", "html", "json", "jsonl", "log", "md", "noun", "png", "py", "safetensors", "toml", "txt"}
)
"""Last parts of file names, which look like references but are none."""

SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
CAMEL = re.compile(r"[A-Z][a-z0-9]+\w*")
SNAKE = re.compile(r"_?[a-z]\w*_\w+")


@dataclass
class Scope:
    """The names that a module or class defines, with the scopes of its classes and the bases of a class."""

    names: set[str] = field(default_factory=set)
    classes: dict[str, Scope] = field(default_factory=dict)
    bases: list[str] = field(default_factory=list)


def files() -> list[Path]:
    """All Python files of the project that are of its own making."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "bundled" not in path.relative_to(ROOT).parts]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def scope_of(body: list[ast.stmt]) -> Scope:
    """Collect what statements define, at any depth of `if`, `try` and `with`, and a class's attributes of `self`."""
    scope = Scope()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            scope.names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = scope.classes[node.name] = scope_of(node.body)
            inner.bases = [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]
            for each in ast.walk(node):
                if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
                    inner.names.add(each.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            scope.names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            scope.names.update(each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For):
            inner = scope_of([each for part in ("body", "orelse", "finalbody") for each in getattr(node, part, [])])
            scope.names |= inner.names
            scope.classes |= inner.classes
    return scope


@cache
def module_scope(path: Path) -> Scope:
    return scope_of(tree(path).body)


@cache
def classes() -> dict[str, list[Scope]]:
    """Every class of the project by name; a name may be taken more than once."""
    found: dict[str, list[Scope]] = {}
    for path in files():
        for name, scope in module_scope(path).classes.items():
            found.setdefault(name, []).append(scope)
    return found


def class_has(name: str, attributes: list[str]) -> bool:
    """Whether a class of that name, or a base of it, has the attribute; a base of another library may have any."""
    if name not in classes():
        return name != "Module" or hasattr(nn.Module, attributes[0])
    for scope in classes()[name]:
        if attributes[0] in scope.names or any(class_has(base, attributes) for base in scope.bases if base != name):
            return True
    return False


def resolve(start: Path, names: list[str]) -> bool:
    """Whether a path of names leads from a folder of modules to something that is defined."""
    here = start
    for position, name in enumerate(names):
        if (here / name).is_dir():
            here = here / name
            continue
        module = here / f"{name}.py"
        rest = names[position + 1 :]
        if not module.exists():
            module, rest = here / "__init__.py", names[position:]
        if not rest:
            return module.exists()
        scope = module_scope(module) if module.exists() else Scope()
        public = module == PACKAGE / "__init__.py" and rest[0] in ovstrans.__all__
        if not public and rest[0] not in scope.names:
            return False
        return len(rest) == 1 or rest[0] not in scope.classes or class_has(rest[0], rest[1:])
    return True


@cache
def variables(path: Path) -> frozenset[str]:
    """Names of arguments and variables of a file, which may be those of modules beside it."""
    found = {node.arg for node in ast.walk(tree(path)) if isinstance(node, ast.arg)}
    stored = (node for node in ast.walk(tree(path)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return frozenset(found | {node.id for node in stored})


@cache
def recipe_keys() -> frozenset[str]:
    """Keys of recipes as they are set: `training.steps`."""
    keys = set()
    for path in (PACKAGE / "recipes").glob("*.toml"):
        for section, table in tomllib.loads(path.read_text()).items():
            if isinstance(table, dict):
                keys |= {f"{section}.{key}" for key in table}
    return frozenset(keys)


@cache
def words() -> frozenset[str]:
    """Every word that code of the project uses: names, attributes, arguments, and words inside strings."""
    found = {*dir(builtins), *OUTSIDE}
    for path in files():
        if path == Path(__file__):
            continue  # its examples of broken references are no code
        docstrings = {id(node) for node in string_statements(tree(path))}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.arg | ast.keyword):
                found.add(node.arg or "")
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.alias):
                found.update(node.name.split("."))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.update(re.findall(r"\w+", node.value))
        found.add(path.stem)
        found.update(path.relative_to(ROOT).parts)
    return frozenset(found | {word for key in recipe_keys() for word in key.split(".")})


def string_statements(module: ast.Module) -> Iterator[ast.Constant]:
    """Docstrings, and the strings under attributes that document them."""
    for node in ast.walk(module):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Every docstring and comment with its line."""
    for node in string_statements(tree(path)):
        yield node.lineno, str(node.value)
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def is_broken(reference: str, path: Path) -> bool:
    """Whether a backticked text is a reference to something of ours that does not exist."""
    reference = re.sub(r"\(.*\)$", "", reference)
    if DOTTED.fullmatch(reference):
        names = reference.split(".")
        if names[-1] in SUFFIXES or names[-1].isupper():  # a file, a placeholder
            return False
        if reference in recipe_keys() or any(key.startswith(f"{reference}.") for key in recipe_keys()):
            return False
        if names[0] in ("ovstrans", "tests"):
            return not resolve(ROOT, names)
        if (PACKAGE / names[0]).is_dir() or (PACKAGE / f"{names[0]}.py").exists():
            return not (resolve(PACKAGE, names) or resolve(path.parent, names))
        if (path.parent / f"{names[0]}.py").exists() and names[0] not in variables(path):
            return not resolve(path.parent, names)
        return names[0] in classes() and not class_has(names[0], names[1:])
    if CAMEL.fullmatch(reference) or SNAKE.fullmatch(reference):
        return reference not in words()
    return False


def broken(path: Path) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: `{reference}`"
        for line, text in prose(path)
        for reference in SPAN.findall(text)
        if is_broken(reference, path)
    ]


def test_every_reference_resolves() -> None:
    found = [each for path in files() for each in broken(path)]
    assert not found, "no such name of ours:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "reference",
    [
        "frameworks.registry.build",
        "ovstrans.frameworks.base.Framework.losses",
        "ovstrans.load_mask",
        "frameworks.gkc",
        "files.check_output",
        "Framework.segment",
        "FCCLIP.padded_size",
        "training.steps",
        "nn.Module.train",
        "BatchNorm2d",
        "clamp",
        "wind_of_nobody = 3",
        "report.json",
        "cli.NAME",
    ],
)
def test_what_exists_is_found(reference: str) -> None:
    assert not is_broken(reference, PACKAGE / "frameworks" / "base.py")


@pytest.mark.parametrize(
    "reference",
    [
        "frameworks.registry.bild",
        "frameworks.criterion",
        "ovstrans.frameworks.base.Framework.loses",
        "ovstrans.prunes",
        "files.check_outputs",
        "registry.bild",
        "Framework.segments",
        "Framwork",
        "HeadOutputs",
        "seen_classes_of_nobody",
    ],
)
def test_what_does_not_exist_is_not(reference: str) -> None:
    assert is_broken(reference, PACKAGE / "frameworks" / "base.py")
