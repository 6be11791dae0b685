"""Numbers in label files and the classes they stand for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.datasets.published.ade import ADE_847
from ovstrans.datasets.published.coco import COCO_PANOPTIC, COCO_STUFF, COCO_STUFF_NOVEL
from ovstrans.datasets.published.encodings import make_encoding, make_index_encoding, make_one_based_encoding
from ovstrans.datasets.published.pascal import CONTEXT_59
from ovstrans.datasets.published.roads import CITYSCAPES
from ovstrans.errors import InputError
from ovstrans.vocabulary.catalog import load_published_vocabulary

PATH = Path("label.png")


@given(
    st.dictionaries(st.integers(0, 900), st.integers(0, 299), min_size=1, max_size=40),
    st.lists(st.lists(st.integers(-5, 2000), min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from([5, 254, 255, 300]),
    st.booleans(),
)
def test_every_number_has_its_class_or_none(
    classes: dict[int, int], rows: list[list[int]], count: int, lenient: bool
) -> None:
    ignored = [number for number in range(0, 901, 7) if number not in classes]
    classes = {number: index % count for number, index in classes.items()}
    others = "ignored" if lenient else "illegal"
    meaning = make_encoding(classes, count, legal="some", ignored=ignored, others=others)
    ignore = 255 if count < 255 else 65535
    want = [[classes.get(n, ignore if lenient or n in ignored else -1) for n in row] for row in rows]
    numbers = np.array(rows)
    if any(index < 0 for row in want for index in row):
        with pytest.raises(InputError, match=r"label\.png: label value -?\d+ "):
            meaning.classes(numbers, PATH)
    else:
        found = meaning.classes(numbers, PATH)
        assert found.tolist() == want and found.dtype == (np.uint8 if count < 255 else np.int64)


def test_a_palette_of_256_numbers_and_their_ignore_label() -> None:
    every = np.arange(256, dtype=np.uint8)[None]
    assert make_index_encoding(255).classes(every[:, :255], PATH)[0].tolist() == list(
        range(255)
    )  # 255 classes are wide
    assert make_one_based_encoding(150).classes(every[:, :151], PATH)[0].tolist() == [255, *range(150)]
    with pytest.raises(InputError, match=r"label value 254 is not allowed \(0 to 253, 255 ignored\)"):
        make_index_encoding(254).classes(every, PATH)


def test_the_tables_of_numbers() -> None:
    sizes = ((COCO_PANOPTIC, 133), (COCO_STUFF, 171), (COCO_STUFF_NOVEL, 15), (CITYSCAPES, 19), (CONTEXT_59, 59))
    for numbers, size in (*sizes, (ADE_847, 847)):
        assert len(numbers) == len(set(numbers)) == size
    assert all(sorted(numbers) == list(numbers) for numbers, _ in sizes)
    assert sum(number <= 90 for number in COCO_PANOPTIC) == sum(number <= 90 for number in COCO_STUFF) == 80
    assert set(COCO_STUFF_NOVEL) < set(COCO_STUFF)
    assert min(ADE_847) > 0 and max(ADE_847) < 26 * 256  # tens of red, and green


def test_negative_numbers_are_not_allowed() -> None:
    with pytest.raises(InputError, match="label value -2 is not allowed"):
        make_index_encoding(3).classes(np.array([[-2, 0]]), PATH)


@pytest.mark.parametrize(
    ("vocabulary", "numbers", "expected"),
    [
        ("coco-panoptic", COCO_PANOPTIC, {"person": 1, "umbrella": 28, "handbag": 31, "toothbrush": 90, "rug": 200}),
        ("coco-stuff", COCO_STUFF, {"person": 1, "umbrella": 28, "handbag": 31, "toothbrush": 90, "wood": 182}),
        ("cityscapes", CITYSCAPES, {"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "bicycle": 33}),
    ],
)
def test_classes_have_the_numbers_of_their_dataset(
    vocabulary: str, numbers: tuple[int, ...], expected: dict[str, int]
) -> None:
    number_of = dict(zip(load_published_vocabulary(vocabulary).names, numbers, strict=True))
    assert {name: number_of[name] for name in expected} == expected


def test_the_tables_of_numbers_are_unchanged() -> None:
    """The facts of the datasets do not change; a digest notices an edit by mistake."""
    tables = (COCO_PANOPTIC, COCO_STUFF, COCO_STUFF_NOVEL, CITYSCAPES, CONTEXT_59, ADE_847)
    digests = [hashlib.sha256(repr(table).encode()).hexdigest()[:8] for table in tables]
    assert digests == ["d5cae1d9", "95528679", "4fa17079", "7cb12e1f", "71ccb41c", "1adaacf5"]
