"""Messages of the library in the words of the command line: parameters become flags.

The library names parameters in backticks, `mask` or `init=pruned`; a user of a command knows them as --mask and
--init pruned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PARAMETER = re.compile(r"`([a-z_]+(?:\.[a-z_0-9]+)*)(?:=([^`]*))?`")


def flag_names(command: Any) -> dict[str, tuple[str, str]]:
    """Map each option's parameter name to its flag and to the flag that turns it off ("" where there is none).

    Args:
        command: A click command.
    """
    options = {each.name: each for each in command.params if each.param_type_name == "option"}
    off = {name: each.secondary_opts[0] for name, each in options.items() if each.secondary_opts}
    off |= {name.removeprefix("no_"): each.opts[-1] for name, each in options.items() if name.startswith("no_")}
    return {name: (each.opts[-1], off.get(name, "")) for name, each in options.items()}


def name_flags(message: str, flags: Mapping[str, tuple[str, str]]) -> str:
    """Replace the parameters in a message by flags.

    `mask` becomes --mask, `init=pruned` --init pruned, `resume=True` --resume, `plot=False` --no-plot. A dotted recipe
    key with a value, `optimizer.lr=0.1`, becomes --set optimizer.lr=0.1 where the command has --set. What is no
    parameter of the command stays as it is.
    """

    def flag_of(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if "." in name and value is not None and "settings" in flags:
            return f"{flags['settings'][0]} {name}={value}"
        if name not in flags:
            return match[0]
        on, off = flags[name]
        if value is None or value == "True":
            return on
        if value == "False" and off:
            return off
        return f"{on} {value}"

    return _PARAMETER.sub(flag_of, message)
