"""Softmax columns under synonyms."""

from __future__ import annotations

import torch
from torch import Tensor

from ovstrans.frameworks.gkc_diversification import Diversified, diversify
from ovstrans.frameworks.mask2former_losses import Targets

WORDS = {name: torch.eye(8)[number] for number, name in enumerate(["cat", "kitty", "tom", "lawn", "turf", "plant"])}


def other_names(*images: list[tuple[int, str]]) -> Diversified:
    """Three classes; per image the class of each segment and the name chosen for it."""
    targets = [
        Targets(torch.zeros(len(each), 2, 2), torch.tensor([kind for kind, _ in each]).long()) for each in images
    ]
    names = [torch.stack([WORDS[name] for _, name in each]) if each else torch.zeros(0, 8) for each in images]
    return diversify(targets, names, 3)


def spelled(found: Diversified) -> list[list[str]]:
    """Per image the names to tell apart: a class by its number, `-` for none."""
    words = [next(name for name, row in WORDS.items() if torch.equal(row, chosen)) for chosen in found.rows]
    return [
        ["-" if column < 0 else str(column) if column < 3 else words[column - 3] for column in line]
        for line in found.columns.tolist()
    ]


def test_the_first_synonym_replaces_the_class_and_others_follow() -> None:
    found = other_names(
        [(0, "kitty"), (2, "lawn"), (0, "cat"), (0, "kitty"), (0, "tom"), (2, "lawn"), (0, "cat")], [(1, "plant")]
    )
    assert spelled(found) == [["kitty", "1", "lawn", "cat", "tom"], ["0", "plant", "2", "-", "-"]]
    assert [each.classes.tolist() for each in found.targets] == [[0, 2, 3, 0, 4, 2, 3], [1]]


def test_a_further_synonym_has_one_column_for_all_classes() -> None:
    found = other_names([(1, "lawn"), (2, "turf"), (1, "plant"), (2, "plant")])
    assert spelled(found) == [["0", "lawn", "turf", "plant"]]
    assert found.targets[0].classes.tolist() == [1, 2, 3, 3]


def test_images_without_segments_keep_the_plain_names() -> None:
    found = other_names([], [(0, "cat"), (0, "tom")], [])
    assert spelled(found) == [["0", "1", "2", "-"], ["cat", "1", "2", "tom"], ["0", "1", "2", "-"]]
    nothing = other_names([], [])
    assert spelled(nothing) == [["0", "1", "2"]] * 2 and nothing.rows.shape == (0, 8)


def test_scores_are_gathered_by_column() -> None:
    found = other_names([(0, "kitty"), (0, "cat")], [(1, "plant")])
    place = {name: number for number, name in enumerate(sorted(("kitty", "cat", "plant")))}
    words = [next(name for name, row in WORDS.items() if torch.equal(row, chosen)) for chosen in found.rows]
    plain = torch.tensor([10.0, 11, 12, 99]).expand(2, 1, 4)
    chosen = torch.tensor([100.0 + place[word] for word in words]).expand(2, 1, 3)
    least = torch.finfo(torch.float32).min
    expected: list[list[float]] = [
        [100.0 + place["kitty"], 11, 12, 100.0 + place["cat"], 99],
        [10, 100.0 + place["plant"], 12, least, 99],
    ]
    scores: Tensor = found.scores(plain, chosen)
    assert scores[:, 0].tolist() == expected
    assert scores.softmax(-1)[1, 0, 3] == 0
