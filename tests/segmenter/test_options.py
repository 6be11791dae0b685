"""Options of a segmentation, and what happens to images that are too large."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ovstrans.errors import InputError
from ovstrans.evaluation.inference import Inference
from ovstrans.segmenter.options import (
    DEFAULT_WINDOW,
    LARGEST,
    SegmentationOptions,
    describe_fit,
    explain_memory_errors,
    fit_to_memory,
)
from tests.segmenter.case import deeplab_checkpoint, fcclip_checkpoint


def test_images_are_scored_at_the_size_that_papers_use_on_the_training_data() -> None:
    trained_on_coco = replace(deeplab_checkpoint(), recipe={"data": {"dataset": "coco-stuff:train"}})
    sizes = [{}, {"short_side": 0}, {"short_side": 16}, {"long_side": 16}]
    found = [SegmentationOptions(**size).inference_for(trained_on_coco) for size in sizes]
    assert [(each.short_side, each.long_side) for each in found] == [
        (800, 1333), (None, None), (16, None), (None, 16),
    ]  # fmt: skip
    on_scenes = SegmentationOptions(window=64, stride=32, flip=True).inference_for(deeplab_checkpoint())
    assert on_scenes == Inference(window=64, stride=32, flip=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": "sloppy"}, "`names=sloppy`: unknown"),
        ({"stride": 8}, "`stride=8`: needs a `window`"),
        ({"things": "car"}, "`things`: applies to segments; give `panoptic` or `instances`"),
        ({"panoptic": True, "window": 64}, "`panoptic`: not possible with windows"),
        ({"instances": True, "flip": True}, "`instances`: not possible with windows or a mirrored image"),
        ({"panoptic": True, "short_side": -1}, "`short_side=-1`: at least 1 pixel"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SegmentationOptions(**options)


def test_frameworks_that_find_no_segments() -> None:
    wants = SegmentationOptions(instances=True)
    wants.check_framework(fcclip_checkpoint().framework, "run")
    SegmentationOptions().check_framework("deeplabv3", "run")
    message = "run: deeplabv3 classifies pixels and finds no segments; `instances` needs a run of deop or fcclip or gkc"
    with pytest.raises(InputError, match=message):
        wants.check_framework("deeplabv3", "run")


def test_an_image_beyond_4_megapixels_is_cut_into_windows_or_reduced() -> None:
    plain = Inference()
    assert LARGEST == 2048 * 2048 and fit_to_memory(plain, (2048, 2048), whole=False) == plain
    assert fit_to_memory(plain, (2048, 2049), whole=False) == Inference(window=DEFAULT_WINDOW)
    reduced = fit_to_memory(plain, (2000, 8000), whole=True)
    height, width = reduced.size(2000, 8000)
    assert reduced.window is None and 0.99 * LARGEST < height * width <= LARGEST
    assert height / width == pytest.approx(0.25, rel=1e-3)


def test_windows_and_sizes_of_the_users_choice_are_kept() -> None:
    for chosen in (Inference(window=512), Inference(long_side=1000), Inference(short_side=600)):
        assert fit_to_memory(chosen, (9000, 9000), whole=False) == chosen
    enlarged = Inference(short_side=3000)
    assert fit_to_memory(enlarged, (100, 100), whole=False) == replace(enlarged, window=DEFAULT_WINDOW)


def test_notices_say_what_happens_and_what_chooses() -> None:
    windows = describe_fit("a.png", (3000, 4000), Inference(window=1024))
    assert windows.startswith("a.png: 4000x3000 is scored in windows of 1024 pixels, as are all images beyond 4 mega")
    assert "`window`" in windows and "`long_side`" in windows
    reduced = describe_fit("a.png", (3000, 4000), Inference(long_side=2000))
    assert reduced.startswith("a.png: 4000x3000 is reduced to 2000x1500") and "`long_side`" in reduced


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
@pytest.mark.parametrize(
    ("whole", "remedy"), [(False, r"use windows \(`window=512`\), or `long_side`"), (True, r"reduce it \(`long_side")]
)
def test_lack_of_memory_names_the_remedy(error: Exception, whole: bool, remedy: str) -> None:
    message = rf"a\.png: not enough memory for this image; {remedy}"
    with pytest.raises(InputError, match=message), explain_memory_errors("a.png", whole=whole):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shape"), explain_memory_errors("a.png", whole=False):
        raise RuntimeError("shape mismatch")
