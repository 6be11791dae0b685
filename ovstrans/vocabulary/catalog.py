"""The vocabularies of published datasets, by name.

Their files are in `published/`, whose README says where they are from. A base/novel split is a variant of
a file: the same classes, some of them novel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from ovstrans.errors import InputError, did_you_mean
from ovstrans.vocabulary.vocabulary import Vocabulary, load_vocabulary

FOLDER = Path(__file__).parent / "published"

SPLITS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    # DeOP (Han et al. 2023, arXiv 2304.01198), after SPNet (Xian et al., CVPR 2019): cow, giraffe, suitcase, ...
    "coco-stuff-156-15": ("coco-stuff", (19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160)),
    # The same: pottedplant, sheep, sofa, train, tvmonitor.
    "pascal-20-15-5": ("pascal-20", (15, 16, 17, 18, 19)),
    # GKC (Han et al. 2023, arXiv 2303.09181), its zero-shot split: bicycle, stop sign, cow, giraffe, ...
    "coco-panoptic-115-18": (
        "coco-panoptic",
        (1, 11, 19, 23, 28, 29, 36, 40, 47, 51, 61, 66, 76, 82, 83, 97, 99, 110),
    ),
}
"""Name of a split to the vocabulary it splits and the indices of the novel classes."""


def published_vocabulary_names() -> list[str]:
    """The names that `published_vocabulary` knows, sorted."""
    return sorted([*(path.stem for path in FOLDER.glob("*.toml")), *SPLITS])


@cache
def published_vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a published dataset; InputError that names the nearest where there is none."""
    known = published_vocabulary_names()
    if name not in known:
        hint = did_you_mean(name, known)
        raise InputError(f"vocabulary {name!r}: unknown; {hint}known are {', '.join(known)}")
    if name in SPLITS:
        whole, novel = SPLITS[name]
        return replace(published_vocabulary(whole), name=name, novel=frozenset(novel))
    return load_vocabulary(FOLDER / f"{name}.toml")


def open_vocabulary(spec: str | Path) -> Vocabulary:
    """A published vocabulary by its name, else the vocabulary in a file.

    Raises InputError where it is neither, and as `load_vocabulary` does.
    """
    if str(spec) in published_vocabulary_names():
        return published_vocabulary(str(spec))
    if not Path(spec).suffix and not Path(spec).exists():
        return published_vocabulary(str(spec))  # a misspelt name more likely than a file: names the nearest
    return load_vocabulary(spec)
