"""Our DeOP against the released code's answers on the same weights; `tests.benchmarks.golden_deop` made them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ovstrans import files
from ovstrans.clip.load import Clip
from tests.frameworks import deop_case as case
from tests.frameworks.golden_case import difference

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return files.read_tensors(case.GOLDEN)[0]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return case.clip()


@pytest.mark.parametrize("size", case.SIZES)
@pytest.mark.parametrize("mode", case.MODES)
def test_answers_are_those_of_the_released_code(
    golden: dict[str, Tensor], clip: Clip, mode: str, size: tuple[int, int]
) -> None:
    prefix = f"{mode}.{size[0]}x{size[1]}."
    expected = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    assert expected
    found = case.answers(clip, case.model(clip, **case.MODES[mode]), size)
    for key, value in expected.items():
        own = case.shown(key, found[key])
        assert own.shape == value.shape, key
        assert difference(own, value) < TOLERANCE, key


def test_the_file_covers_everything_at_both_sizes(golden: dict[str, Tensor]) -> None:
    kinds = {"text", "features", "embeddings", "class_logits", "semantic", "loss.focal", "loss.dice"}
    for size in case.SIZES:
        assert {key.split(".", 2)[2] for key in golden if key.startswith(f"with-mask.{size[0]}x{size[1]}.")} == kinds
    assert case.GOLDEN.stat().st_size < 200_000
    assert all(torch.isfinite(value).all() for value in golden.values())


def test_the_answers_depend_on_the_way_to_sever(golden: dict[str, Tensor]) -> None:
    features = [golden[f"{mode}.64x64.features"] for mode in case.MODES]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert difference(features[one], features[other]) > 0.01
