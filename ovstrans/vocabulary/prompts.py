"""The parts of prompts: the choice of class names, and prompt templates.

A class may be prompted by different names. The published ways of choosing them are:

synonyms    The synonyms of the vocabulary. Those of the published vocabularies are OpenSeg's prompt-engineered names,
            as used by FC-CLIP.
plain       The names that the dataset's authors use, unchanged: `wall-other-merged`, or `building, edifice` as a
            single prompt.
clean       The authors' names as the released code of GKC and OpenTrans simplifies them: `wall`.
joined      All synonyms in one prompt, separated by commas, as OpenTrans's code does for PASCAL VOC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ovstrans.errors import InputError, did_you_mean
from ovstrans.vocabulary.vocabulary import Vocabulary, make_distinct_names

AUTO = "auto"
"""Choice of class names: the one that the framework was published with."""
DATASET = "dataset"
"""Choice of templates: those of the vocabulary itself."""
BARE = "bare"
"""Choice of templates: the class name alone. A vocabulary that sets no templates has these."""

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    # ViLD (Gu et al. 2022, arXiv 2104.13921), in FC-CLIP's selection: some end in a full stop, some do not.
    "vild": (
        "a photo of a {}.",
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
        "a photo of a small {}.",
        "a photo of a medium {}.",
        "a photo of a large {}.",
        "This is a photo of a small {}.",
        "This is a photo of a medium {}.",
        "This is a photo of a large {}.",
        "There is a small {} in the scene.",
        "There is a medium {} in the scene.",
        "There is a large {} in the scene.",
    ),
    # CLIP (Radford et al. 2021, arXiv 2103.00020), sec. 3.1.4.
    "clip": ("a photo of a {}.",),
    BARE: ("{}",),
}
"""Prompt templates by name, each with `{}` in place of the class name."""


def template_names() -> list[str]:
    """Return the values of a framework's option `templates`: the keys of `TEMPLATES`, and `dataset`."""
    return [*TEMPLATES, DATASET]


def get_templates(name: str) -> tuple[str, ...]:
    """Return the prompt templates of a name; InputError if it is not in `TEMPLATES`."""
    if name not in TEMPLATES:
        hint = did_you_mean(name, TEMPLATES)
        raise InputError(f"templates {name!r}: unknown; {hint}known are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def clean_name(name: str) -> str:
    """Simplify a COCO class name as GKC does: `wall-other-merged` to `wall`, `door-stuff` to `door stuff`."""
    return name.removesuffix("-merged").removesuffix("-other").replace("-", " ")


def use_synonyms(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary unchanged."""
    return vocabulary


def use_plain_names(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary prompted by the authors' names, or by its synonyms if it has none."""
    return _replace_synonyms(vocabulary, vocabulary.plain or vocabulary.classes)


def use_clean_names(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary prompted by the authors' names, simplified; by its simplified synonyms if it has none.

    Follows GKC's code for the published vocabularies: it simplifies the names of COCO and VIPSeg (but keeps the
    latter's underscores), replaces the underscores of VSPW by spaces, and takes all others as they are. The names of
    any other vocabulary are simplified as COCO's are.
    """
    clean = _CLEANING.get(vocabulary.name, clean_name)
    classes = vocabulary.plain or vocabulary.classes
    cleaned = tuple(tuple(clean(name) if clean(name).strip() else name for name in names) for names in classes)
    return _replace_synonyms(vocabulary, cleaned)


def join_synonyms(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary with all synonyms of a class joined into one prompt."""
    return _replace_synonyms(vocabulary, tuple((",".join(synonyms),) for synonyms in vocabulary.classes))


CLASS_NAMES: Mapping[str, Callable[[Vocabulary], Vocabulary]] = {
    "synonyms": use_synonyms,
    "plain": use_plain_names,
    "clean": use_clean_names,
    "joined": join_synonyms,
}
"""Choices of class names by name. Each keeps the display names, and applying it twice is the same as once."""


def name_choices() -> list[str]:
    """Return the values of the option `names`: `auto` and the keys of `CLASS_NAMES`."""
    return [AUTO, *CLASS_NAMES]


def check_names(names: str) -> None:
    """Raise InputError if `names` is not among `name_choices`."""
    if names not in name_choices():
        hint = did_you_mean(names, name_choices())
        raise InputError(f"`names={names}`: unknown; {hint}known are {', '.join(name_choices())}")


def use_class_names(vocabulary: Vocabulary, names: str) -> Vocabulary:
    """Return the vocabulary with its `classes` replaced by the chosen names, a key of `CLASS_NAMES`.

    Raises:
        InputError: The choice is unknown.
    """
    check_names(names)
    return CLASS_NAMES[names](vocabulary)


def _keep_name(name: str) -> str:
    return name


def _replace_underscores(name: str) -> str:
    return name.replace("_", " ")


_CLEANING: Mapping[str, Callable[[str], str]] = {
    "vspw": _replace_underscores,
    **dict.fromkeys(("ade20k-150", "ade20k-847", "cityscapes", "context-59", "context-459"), _keep_name),
}
"""Published vocabularies whose names GKC's code does not simplify as it does COCO's."""


def _replace_synonyms(vocabulary: Vocabulary, classes: tuple[tuple[str, ...], ...]) -> Vocabulary:
    """Replace the synonyms by `classes`, and keep the display names."""
    if classes == vocabulary.classes:
        return vocabulary
    return replace(vocabulary, classes=classes, display=vocabulary.display or make_distinct_names(vocabulary.classes))
