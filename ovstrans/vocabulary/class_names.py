"""Which of a class's names go into prompts: published ways, by name.

synonyms  those of the vocabulary: of the published ones the prompt-engineered names of OpenSeg, as FC-CLIP has them
plain     what the dataset's authors call the class, whole: `wall-other-merged`, or `building, edifice` as one prompt
clean     the same as the released code of GKC, and of OpenTrans, writes them: `wall`
joined    all synonyms in one prompt, commas between them, as OpenTrans's code has it for PASCAL VOC
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ovstrans.errors import InputError, did_you_mean
from ovstrans.vocabulary.openseg import distinct_names
from ovstrans.vocabulary.vocabulary import Vocabulary

AUTO = "auto"
"""Stands for the way that the framework was published with."""


def clean_name(name: str) -> str:
    """A COCO class name as GKC says it: `wall-other-merged` is wall, `door-stuff` is door stuff."""
    return name.removesuffix("-merged").removesuffix("-other").replace("-", " ")


def synonyms_of(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary as it is."""
    return vocabulary


def plain(vocabulary: Vocabulary) -> Vocabulary:
    """Prompted by the authors' own names; by its synonyms where it has none such."""
    return _prompted_by(vocabulary, vocabulary.plain or vocabulary.classes)


def clean(vocabulary: Vocabulary) -> Vocabulary:
    """Prompted by the authors' own names, or else its synonyms, cleaned.

    Of the published sets the code of GKC cleans COCO's and VIPSeg's names, underscores of the latter staying; of
    VSPW it makes underscores blanks; the others it takes as they are. Any other vocabulary is cleaned as COCO is.
    """
    rule = _CLEANED.get(vocabulary.name, clean_name)
    classes = vocabulary.plain or vocabulary.classes
    cleaned = tuple(tuple(rule(name) if rule(name).strip() else name for name in names) for names in classes)
    return _prompted_by(vocabulary, cleaned)


def joined(vocabulary: Vocabulary) -> Vocabulary:
    """Prompted by all synonyms at once: one prompt a class."""
    return _prompted_by(vocabulary, tuple((",".join(synonyms),) for synonyms in vocabulary.classes))


NAMES: Mapping[str, Callable[[Vocabulary], Vocabulary]] = {
    "synonyms": synonyms_of,
    "plain": plain,
    "clean": clean,
    "joined": joined,
}
"""Name to what it makes of a vocabulary. Doing it twice changes nothing; what is displayed stays."""


def name_choices() -> list[str]:
    """What `--names` may be."""
    return [AUTO, *NAMES]


def check_names(names: str) -> None:
    """InputError where `--names` may not be that."""
    if names not in name_choices():
        hint = did_you_mean(names, name_choices())
        raise InputError(f"names {names!r}: unknown; {hint}known are {', '.join(name_choices())}")


def by_names(vocabulary: Vocabulary, names: str) -> Vocabulary:
    """The vocabulary with the class names of that way, of `NAMES`, in `classes`; InputError where there is no such."""
    check_names(names)
    return NAMES[names](vocabulary)


def _as_it_is(name: str) -> str:
    return name


def _without_underscores(name: str) -> str:
    return name.replace("_", " ")


_CLEANED: Mapping[str, Callable[[str], str]] = {
    "vspw": _without_underscores,
    **dict.fromkeys(("ade20k-150", "ade20k-847", "cityscapes", "context-59", "context-459"), _as_it_is),
}
"""Published vocabularies whose names the code of GKC does not clean as it does COCO's."""


def _prompted_by(vocabulary: Vocabulary, classes: tuple[tuple[str, ...], ...]) -> Vocabulary:
    """`classes` in the place of the synonyms, while reports go on calling the classes as before."""
    if classes == vocabulary.classes:
        return vocabulary
    return replace(vocabulary, classes=classes, display=vocabulary.display or distinct_names(vocabulary.classes))
