"""The vocabulary that a user asks for on the command line: `--classes`, `--vocabulary`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovstrans.errors import InputError

if TYPE_CHECKING:
    from ovstrans.vocabulary.vocabulary import Vocabulary


def classes_vocabulary(text: str) -> Vocabulary:
    """The vocabulary of `--classes "road, pavement, a red car"`.

    Raises InputError where there is no name, an empty one between commas, or one twice (whatever its case).
    """
    from ovstrans.vocabulary.vocabulary import Vocabulary

    names = [" ".join(part.split()) for part in text.split(",")]
    if not any(names):
        raise InputError(f'--classes "{text}": names no class; write for instance "road, pavement, a red car"')
    for number, name in enumerate(names, start=1):
        if not name:
            raise InputError(f'--classes "{text}": class {number} is empty; name it, or take out the comma')
        if name.casefold() in (other.casefold() for other in names[: number - 1]):
            raise InputError(f'--classes "{text}": {name!r} is named twice; class names must differ')
    return Vocabulary.from_names("classes", names)
