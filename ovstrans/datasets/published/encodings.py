"""Encodings: how the numbers in label files stand for classes.

Shapes: `H W` image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovstrans.datasets.images import read_colors, read_label
from ovstrans.datasets.sample import IGNORE, get_ignore_label
from ovstrans.errors import InputError
from ovstrans.files import existing_file

ILLEGAL = -1
"""Entry of a table for a number that must not occur."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """Meaning of the numbers in label files.

    Attributes:
        table: Class index, ignore label or `ILLEGAL` of each number from 0, int64. The last entry is for all others.
        ignore: Label of pixels that are ignored.
        legal: The numbers that may occur, in words, for error messages.
        numbers: Function that reads the raw numbers of a file, [H, W].
    """

    table: np.ndarray
    ignore: int
    legal: str
    numbers: Callable[[Path], np.ndarray] = read_label

    def read(self, path: Path) -> np.ndarray:
        """Read the class indices of a file.

        Returns:
            [H, W]: uint8 if the ignore label is 255, else int64.

        Raises:
            InputError: The file is missing or broken, or holds a number that must not occur.
        """
        return self.classes(self.numbers(path), path)

    def classes(self, numbers: np.ndarray, path: Path) -> np.ndarray:
        """Return the class indices of numbers [H, W] that were read from `path`; see `read`."""
        last = len(self.table) - 1
        classes = self.table[np.where((numbers < 0) | (numbers > last), last, numbers)]
        if (classes == ILLEGAL).any():
            wrong = np.unique(numbers[classes == ILLEGAL])
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise InputError(
                f"{path}: label value {int(wrong[0])}{more} is not allowed ({self.legal}); "
                "correct the file, or copy or prepare it again"
            )
        return classes.astype(np.uint8 if self.ignore == IGNORE else np.int64)


def make_encoding(
    classes: Mapping[int, int],
    count: int,
    *,
    legal: str,
    ignored: Iterable[int] = (),
    others: str = "illegal",
    numbers: Callable[[Path], np.ndarray] = read_label,
) -> Encoding:
    """Make an encoding.

    Args:
        classes: Class index of each number.
        count: Number of classes.
        legal: The numbers that may occur, in words.
        ignored: Numbers that are ignored.
        others: What all other numbers are, "illegal" or "ignored".
        numbers: Function that reads the raw numbers of a file.
    """
    ignore = get_ignore_label(count)
    ignored = tuple(ignored)
    rest = ignore if others == "ignored" else ILLEGAL
    table = np.full(max([*classes, *ignored]) + 2, rest, dtype=np.int64)
    table[list(ignored)] = ignore
    table[list(classes)] = list(classes.values())
    return Encoding(table, ignore, legal, numbers)


def make_index_encoding(count: int, *, ignored: Iterable[int] | None = None) -> Encoding:
    """Make the encoding whose numbers are class indices, as in detectron2.

    Args:
        count: Number of classes.
        ignored: Numbers that are ignored; by default the ignore label.
    """
    ignored = (get_ignore_label(count),) if ignored is None else tuple(ignored)
    legal = f"0 to {count - 1}, {_join(ignored)} ignored"
    return make_encoding({index: index for index in range(count)}, count, legal=legal, ignored=ignored)


def make_one_based_encoding(
    count: int, *, ignored: Iterable[int] = (0,), numbers: Callable[[Path], np.ndarray] = read_label
) -> Encoding:
    """Make the encoding whose number n is class n - 1, as in ADE20K and VSPW.

    Args:
        count: Number of classes.
        ignored: Numbers that are ignored; by default 0, which means unlabelled.
        numbers: Function that reads the raw numbers of a file.
    """
    ignored = tuple(ignored)
    legal = f"1 to {count}, {_join(ignored)} ignored"
    return make_encoding(
        {index + 1: index for index in range(count)}, count, legal=legal, ignored=ignored, numbers=numbers
    )


def read_ade_objects(path: Path) -> np.ndarray:
    """Read the object number of each pixel of an ADE20K `_seg.png`, int64 [H, W]: 256 (R div 10) + G."""
    colors = read_colors(path).astype(np.int64)
    return colors[..., 0] // 10 * 256 + colors[..., 1]


def read_matlab_map(path: Path) -> np.ndarray:
    """Read the `LabelMap` of a PASCAL-Context .mat file, int64 [H, W]; InputError if the file has none."""
    from scipy.io import loadmat

    existing_file(path)
    try:
        content: dict[str, Any] = loadmat(path, variable_names=["LabelMap"])
    except Exception as error:  # loadmat lets through any error of its parser
        raise InputError(f"{path}: a broken .mat file ({error}); copy it again") from error
    values = content.get("LabelMap")
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iu":
        raise InputError(f"{path}: holds no LabelMap of whole numbers; copy it from PASCAL-Context again")
    return values.astype(np.int64)


def _join(numbers: Iterable[int]) -> str:
    return " and ".join(str(number) for number in numbers)
