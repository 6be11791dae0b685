"""Prompt templates by name: the sentences that a class name fills before the text encoder reads it."""

from __future__ import annotations

from collections.abc import Mapping

from ovstrans.errors import InputError, did_you_mean

DATASET = "dataset"
"""Stands for whatever templates the vocabulary itself brings."""
BARE = "bare"
"""The class name alone, which is what a vocabulary has that brings no prompts."""

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    # ViLD (Gu et al. 2022, arXiv 2104.13921), in the choice of FC-CLIP: some end in a full stop, some do not.
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
"""Name to templates, each with `{}` for the class name."""


def template_names() -> list[str]:
    """What a framework's option `templates` may be: the sets' names, and `dataset`."""
    return [*TEMPLATES, DATASET]


def template_set(name: str) -> tuple[str, ...]:
    """The templates of that name; InputError where there are none."""
    if name not in TEMPLATES:
        hint = did_you_mean(name, TEMPLATES)
        raise InputError(f"templates {name!r}: unknown; {hint}known are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
