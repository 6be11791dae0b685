"""Plurals of English nouns: the detachment rules of WordNet's `morphy` (morphy(7WN)), without its dictionary."""

from __future__ import annotations

from collections.abc import Mapping

DETACHMENTS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
"""(ending of the plural, ending of the singular). `ves` is no rule of WordNet's own; its readers add it."""


def base_forms(form: str, exceptions: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What `form` may be a form of, itself first: `boxes` gives boxes, boxe, box.

    exceptions: irregular plurals; a form among them follows no rule. The caller looks up which of the
    forms are words.
    """
    if form in exceptions:
        ruled = exceptions[form]
    else:
        ruled = tuple(form.removesuffix(plural) + singular for plural, singular in DETACHMENTS if form.endswith(plural))
    return tuple(dict.fromkeys((form, *(base for base in ruled if base))))
