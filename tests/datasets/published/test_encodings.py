"""Numbers in label files and the classes they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.datasets.published import ids
from ovstrans.datasets.published.encodings import encoding, indices, numbered_from_one
from ovstrans.errors import InputError

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
    meaning = encoding(classes, count, legal="some", ignored=ignored, others=others)
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
    assert indices(255).classes(every[:, :255], PATH)[0].tolist() == list(range(255))  # 255 classes are wide
    assert numbered_from_one(150).classes(every[:, :151], PATH)[0].tolist() == [255, *range(150)]
    with pytest.raises(InputError, match=r"label value 254 is none there may be \(0 to 253, 255 ignored\)"):
        indices(254).classes(every, PATH)


def test_the_tables_of_numbers() -> None:
    for name, size in (
        ("COCO_PANOPTIC", 133),
        ("COCO_STUFF", 171),
        ("COCO_STUFF_NOVEL", 15),
        ("CITYSCAPES", 19),
        ("CONTEXT_59", 59),
        ("ADE_847", 847),
    ):
        numbers = getattr(ids, name)
        assert len(numbers) == len(set(numbers)) == size
        assert name == "ADE_847" or sorted(numbers) == list(numbers)
    assert sum(number <= 90 for number in ids.COCO_PANOPTIC) == sum(number <= 90 for number in ids.COCO_STUFF) == 80
    assert set(ids.COCO_STUFF_NOVEL) < set(ids.COCO_STUFF)
    assert min(ids.ADE_847) > 0 and max(ids.ADE_847) < 26 * 256  # tens of red, and green
