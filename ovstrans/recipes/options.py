"""Keyword options of functions and commands, made from the schema of recipes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ovstrans.recipes.keys import Key
from ovstrans.recipes.schema import Recipe, option_keys

_TYPES: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}

F = TypeVar("F", bound=Callable[..., Any])


def accepts_options(
    kind: type[Recipe],
    *,
    after: str = "",
    annotate: Callable[[Key, type], Any] = lambda key, value_type: value_type | None,
) -> Callable[[F], F]:
    """Decorate a function whose `**options` are those of a recipe, so that its signature lists them.

    Args:
        kind: Kind of recipe.
        after: Parameter behind which the options are listed; the last one by default.
        annotate: Makes the annotation of an option from its first key and its type.
    """

    def decorate(function: F) -> F:
        own = [*inspect.signature(function, eval_str=True).parameters.values()]
        own = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        place = next((number for number, each in enumerate(own, 1) if each.name == after), len(own))
        options = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotate(key, _TYPES[key.type])
            )
            for name, (key, *_) in option_keys(kind).items()
            if name not in {parameter.name for parameter in own}
        ]
        parameters = [*own[:place], *options, *own[place:]]
        documented: Any = function
        documented.__signature__ = inspect.Signature(parameters)
        documented.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return function

    return decorate


_PLAIN: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
