"""Folder jobs from Python: typed results, progress, failures, and nothing printed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

import ovstrans
from ovstrans.errors import InputError
from ovstrans.progress import Progress
from ovstrans.segmenter import predict as predict_module
from ovstrans.segmenter.predict import predict
from ovstrans.segmenter.segmenter import Segmenter
from tests.segmenter.case import deeplab_checkpoint, draw, fcclip_checkpoint


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_typed_result_and_nothing_printed(capfd: pytest.CaptureFixture[str]) -> None:
    draw("in/a.png")
    draw("in/deep/b.png", seed=1)
    found = predict(deeplab_checkpoint(), "in", classes=["road", "a red car"], out="seen", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert [image.file for image in found.images] == [Path("in/a.png"), Path("in/deep/b.png")]
    assert found.vocabulary.names == ("road", "a red car") and found.checkpoint is None and not found.failed
    first = found.images[0]
    assert first.size == (64, 80) and sum(each.share for each in first.classes) == pytest.approx(1)
    assert first.files == {"label_map": Path("seen/labels/a.png"), "overlay": Path("seen/overlays/a.png")}
    assert all(path.exists() for image in found.images for path in image.files.values())
    assert repr(found) == "Predictions(2 images, 2 classes, written to seen)"
    summary = found.to_json()
    assert json.loads(json.dumps(summary)) == summary and summary["checkpoint"] is None
    assert ovstrans.predict is predict


def test_a_loaded_segmenter_does_several_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    draw("a.png")
    segmenter = Segmenter.load(fcclip_checkpoint(), device="cpu")
    monkeypatch.setattr(Segmenter, "load", None)
    first = segmenter.predict("a.png", out="one", panoptic=True)
    second = segmenter.predict([Path("a.png")], classes="circle, sand", out="two", instances=True, overlay=False)
    assert first.images[0].segments is not None and first.images[0].instances is None
    assert second.images[0].segments is None and second.images[0].instances is not None
    assert first.files == {"panoptic": Path("one/panoptic.json")} and set(second.images[0].files) == {"label_map"}


def test_progress_starts_where_an_earlier_call_ended() -> None:
    for number in range(3):
        draw(f"in/{number}.png", seed=number)
    seen: list[Progress] = []
    predict(deeplab_checkpoint(), "in", out="seen", device="cpu", progress=seen.append)
    assert [(each.done, each.total, each.unit) for each in seen] == [(done, 3, "images") for done in range(4)]
    Path("seen/labels/1.png").unlink()
    seen.clear()
    found = predict(deeplab_checkpoint(), "in", out="seen", device="cpu", resume=True, progress=seen.append)
    assert [each.done for each in seen] == [2, 3]
    assert [image.resumed for image in found.images] == [True, False, True]
    assert ["window" in image.to_json() for image in found.images] == [False, True, False]


def test_failed_images_are_in_the_result() -> None:
    draw("in/a.png")
    Path("in/b.png").write_text("not an image")
    found = predict(deeplab_checkpoint(), "in", out="seen", device="cpu")
    assert len(found.images) == 1 and [failed.file for failed in found.failed] == [Path("in/b.png")]
    assert "not an image" in found.failed[0].error and "1 failed" in repr(found)
    alone = predict(deeplab_checkpoint(), "in/b.png", out="none", device="cpu")
    assert not alone.images and not Path("none").exists()


def test_an_interrupted_call_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        draw(f"in/{number}.png", seed=number)
    plain, seen = predict_module.read_image, []

    def interrupted(path: Path) -> torch.Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(path)
        return plain(path)

    monkeypatch.setattr(predict_module, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(deeplab_checkpoint(), "in", out="seen", device="cpu")
    assert "seen: 2 of 3 images are done; give the same options and `resume=True` to go on" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


def test_bad_arguments_are_found_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    draw("a.png")
    monkeypatch.setattr(Segmenter, "load", None)
    checkpoint = deeplab_checkpoint()
    with pytest.raises(InputError, match="`resume` and `force`"):
        predict(checkpoint, "a.png", resume=True, force=True)
    with pytest.raises(InputError, match="`device=tpu`: unknown"):
        predict(checkpoint, "a.png", device="tpu")
    with pytest.raises(InputError, match="no such file or folder"):
        predict(checkpoint, "gone.png")
    with pytest.raises(InputError, match="`images`: names no image"):
        predict(checkpoint, [])
    with pytest.raises(FileNotFoundError):
        predict("gone", "a.png")
    with pytest.raises(InputError, match="class 2 is empty"):
        predict(checkpoint, "a.png", classes="a,")
    assert not Path("ovstrans-out").exists()
