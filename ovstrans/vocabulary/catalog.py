"""Vocabularies of published datasets, by name.

Their files are in `published/`; the README there names the sources. A base/novel split is a variant of such a file: it
has the same classes, some of which are novel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from ovstrans.errors import InputError, did_you_mean
from ovstrans.vocabulary.files import read_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary

FOLDER = Path(__file__).parent / "published"

SPLITS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    # DeOP (Han et al. 2023, arXiv 2304.01198), after SPNet (Xian et al., CVPR 2019): cow, giraffe, suitcase, ...
    "coco-stuff-156-15": ("coco-stuff", (19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160)),
    # The same sources: pottedplant, sheep, sofa, train, tvmonitor.
    "pascal-20-15-5": ("pascal-20", (15, 16, 17, 18, 19)),
    # GKC (Han et al. 2023, arXiv 2303.09181), its zero-shot split: bicycle, stop sign, cow, giraffe, ...
    "coco-panoptic-115-18": (
        "coco-panoptic",
        (1, 11, 19, 23, 28, 29, 36, 40, 47, 51, 61, 66, 76, 82, 83, 97, 99, 110),
    ),
}
"""Base/novel splits: maps the name to the vocabulary that is split and the indices of its novel classes."""


def list_published_vocabularies() -> list[str]:
    """Return the names that `load_published_vocabulary` accepts, sorted."""
    return sorted([*(path.stem for path in FOLDER.glob("*.toml")), *SPLITS])


@cache
def load_published_vocabulary(name: str) -> Vocabulary:
    """Load the vocabulary of a published dataset.

    Raises:
        InputError: There is none of that name; the message suggests the nearest.
    """
    known = list_published_vocabularies()
    if name not in known:
        hint = did_you_mean(name, known)
        raise InputError(f"vocabulary {name!r}: unknown; {hint}known are {', '.join(known)}")
    if name in SPLITS:
        whole, novel = SPLITS[name]
        return replace(load_published_vocabulary(whole), name=name, novel=frozenset(novel))
    return read_vocabulary(FOLDER / f"{name}.toml")


def load_vocabulary(spec: str | Path) -> Vocabulary:
    """Load a published vocabulary by its name, or a vocabulary file.

    Raises:
        InputError: `spec` is neither a known name nor a file, or the file is wrong (see `read_vocabulary`).
    """
    if str(spec) in list_published_vocabularies():
        return load_published_vocabulary(str(spec))
    if not Path(spec).suffix and not Path(spec).exists():
        return load_published_vocabulary(str(spec))  # a misspelt name more likely than a file: suggest the nearest
    return read_vocabulary(spec)
