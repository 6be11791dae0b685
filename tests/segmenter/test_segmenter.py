"""The segmenter from Python: what it loads, what it takes for an image, what it finds."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ovstrans
from ovstrans.checkpoints.file import Checkpoint
from ovstrans.datasets.images import read_image
from ovstrans.errors import InputError
from ovstrans.evaluation.inference import Inference, predict_image
from ovstrans.frameworks import registry
from ovstrans.segmenter import options as options_module
from ovstrans.segmenter.segmenter import Segmenter
from ovstrans.training.run_folder import Run
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.segmenter.case import deeplab_checkpoint, draw, fcclip_checkpoint, write_run


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load(deeplab_checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def mask_segmenter() -> Segmenter:
    return Segmenter.load(fcclip_checkpoint(), device="cpu")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return draw(tmp_path / "photo.png")


def test_a_segmenter_is_loaded_from_a_run_a_file_or_an_object(tmp_path: Path, photo: Path) -> None:
    file = write_run(tmp_path / "run", deeplab_checkpoint())
    run = Run(tmp_path / "run", recipe=None, plan=None)  # type: ignore[arg-type]
    sources: list[Any] = [tmp_path / "run", str(file), run, deeplab_checkpoint()]
    segmenters = [Segmenter.load(source, device="cpu") for source in sources]
    assert [each.path for each in segmenters] == [file, file, file, None]
    labels = [each.segment(photo).labels for each in segmenters]
    assert all(np.array_equal(found, labels[0]) for found in labels)
    assert len({each.sha256 for each in segmenters}) == 2  # of the file, or of the weights
    assert ovstrans.Segmenter is Segmenter
    assert repr(segmenters[0]) == f"Segmenter(deeplabv3 on RN-mini, trained on 28 classes, {file}, cpu)"


def test_the_checkpoint_is_left_as_it_is(photo: Path) -> None:
    checkpoint = deeplab_checkpoint()
    before = {key: value.clone() for key, value in checkpoint.state.items()}
    segmenter = Segmenter.load(checkpoint, device="cpu")
    segmenter.segment(photo)
    for parameter in segmenter.framework.parameters():
        parameter.data.zero_()
    assert set(checkpoint.state) == set(before)
    assert all(torch.equal(checkpoint.state[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("gone.safetensors", {}, "gone.safetensors: no such file"),
        (".", {}, "no checkpoint.safetensors in this folder"),
        (3, {}, "`source`: int is no run and no checkpoint"),
        ("run", {"runtime": "fast"}, "`runtime=fast`: unknown; use auto, sparse or dense"),
        ("run", {"device": "tpu"}, "`device=tpu`: unknown"),
    ],
)
def test_what_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        Segmenter.load(source, **options)


def test_the_labels_are_those_of_the_framework(segmenter: Segmenter, photo: Path) -> None:
    """Computed here at the image's size, without the evaluation room."""
    image = torch.from_numpy(np.array(Image.open(photo)).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        scores = registry.restore(deeplab_checkpoint()).segment(image)[0]
    found = segmenter.segment(photo, confidence=True)
    assert found.labels.shape == (64, 80) and found.labels.dtype == np.int64
    assert (found.labels == scores.argmax(0).numpy()).mean() > 0.999
    assert found.confidence is not None
    np.testing.assert_allclose(found.confidence, scores.softmax(0).amax(0).numpy(), atol=1e-4)
    assert found.classes == deeplab_checkpoint().vocabulary.names
    assert found.segments is found.instances is found.segment_map is found.distinct_instances is None
    assert segmenter.segment(photo).confidence is None


def test_an_image_is_a_path_a_picture_an_array_or_a_tensor(segmenter: Segmenter, photo: Path) -> None:
    picture = Image.open(photo)
    array = np.array(picture)
    tensor = torch.from_numpy(array.copy())
    images = [str(photo), picture, array, array / 255, tensor, tensor.permute(2, 0, 1), tensor.float() / 255]
    labels = [segmenter.segment(image).labels for image in images]
    assert all(np.array_equal(found, labels[0]) for found in labels)


def test_classes_in_any_words(segmenter: Segmenter, photo: Path) -> None:
    found = segmenter.segment(photo, "road, a red car")
    assert found.classes == ("road", "a red car") and found.labels.max() <= 1
    assert np.array_equal(segmenter.segment(photo, ["road", "a red car"]).labels, found.labels)
    words = Vocabulary("words", (("road",), ("a red car",)))
    assert np.array_equal(segmenter.segment(photo, vocabulary=words).labels, found.labels)
    assert len(segmenter.segment(photo, vocabulary="cityscapes").classes) == 19
    with pytest.raises(InputError, match="`classes` and `vocabulary`: give one of them"):
        segmenter.segment(photo, "a", vocabulary=words)


def test_text_embeddings_are_made_once_for_each_vocabulary(
    segmenter: Segmenter, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, ...]] = []
    plain = registry.classifier_for

    def counted(checkpoint: Checkpoint, vocabulary: Vocabulary, names: str) -> Any:
        made.append(vocabulary.names)
        return plain(checkpoint, vocabulary, names)

    monkeypatch.setattr(registry, "classifier_for", counted)
    for classes in ("a cup, a jar", "a cup, a jar", ["a cup", "a jar"], "a jar, a cup"):
        segmenter.segment(photo, classes)
    assert made == [("a cup", "a jar"), ("a jar", "a cup")]
    segmenter.segment(photo, "a cup, a jar", names="joined")
    assert len(made) == 3


def test_sizes_windows_and_flip_reach_the_model(segmenter: Segmenter, photo: Path) -> None:
    image = read_image(photo)
    for options in ({"long_side": 40}, {"window": 48, "stride": 16}, {"flip": True}, {"short_side": 96}):
        inference = Inference(**options)  # type: ignore[arg-type]
        expected = predict_image(segmenter.framework, image, inference=inference).classes.numpy()
        assert np.array_equal(segmenter.segment(photo, **options).labels, expected)  # type: ignore[arg-type]


def test_a_large_image_is_cut_into_windows(
    segmenter: Segmenter, photo: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(options_module, "LARGEST", 64 * 64)
    monkeypatch.setattr(options_module, "DEFAULT_WINDOW", 48)
    expected = segmenter.segment(photo, window=48).labels
    with caplog.at_level(logging.INFO, "ovstrans"):
        assert np.array_equal(segmenter.segment(photo).labels, expected)
    assert f"{photo}: 80x64 is scored in windows of 48 pixels" in caplog.text


def test_panoptic_segments_and_instances(mask_segmenter: Segmenter, photo: Path) -> None:
    found = mask_segmenter.segment(photo, panoptic=True, instances=True)
    assert found.segments and found.instances and found.segment_map is not None
    assert found.segment_map.shape == (64, 80)
    for segment in found.segments:
        assert segment.area == (found.segment_map == segment.id).sum()
        assert segment.name == found.classes[segment.class_index]
    scores = [instance.score for instance in found.instances]
    assert scores == sorted(scores, reverse=True) and 0 <= scores[-1] <= scores[0] <= 1
    for instance in found.instances:
        ys, xs = np.nonzero(instance.mask)
        assert instance.box == (xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min())
        assert instance.name != "sand"
    assert found.distinct_instances is not None and len(found.distinct_instances) <= len(found.instances)
    assert f"; {len(found.segments)} segments; " in repr(found) and "mask" not in repr(found.instances[0])


def test_things_of_the_users_choice(mask_segmenter: Segmenter, photo: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ovstrans"):
        found = mask_segmenter.segment(photo, "circle, sand, teapot", panoptic=True)
    assert "'teapot': not known whether countable; taken as stuff" in caplog.text
    assert {segment.name for segment in found.segments or () if segment.isthing} <= {"circle"}
    found = mask_segmenter.segment(photo, "circle, sand, teapot", panoptic=True, things="SAND, teapot")
    assert {segment.name for segment in found.segments or () if segment.isthing} <= {"sand", "teapot"}


def test_a_framework_without_segments_is_refused(segmenter: Segmenter, photo: Path) -> None:
    with pytest.raises(InputError, match="deeplabv3 classifies pixels and finds no segments; `panoptic` needs a run"):
        segmenter.segment(photo, panoptic=True)


def test_a_single_class_is_noticed(segmenter: Segmenter, photo: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ovstrans"):
        assert segmenter.segment(photo, "teapot").areas() == {"teapot": 1.0}
    assert "only one class, so every pixel will be 'teapot'" in caplog.text


def test_nothing_is_printed(segmenter: Segmenter, photo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    segmenter.segment(photo, "teapot")
    assert capfd.readouterr() == ("", "")


def test_a_notebook_shows_the_overlay(mask_segmenter: Segmenter, photo: Path) -> None:
    found = mask_segmenter.segment(photo, panoptic=True)
    shown = Image.open(io.BytesIO(found._repr_png_()))
    assert np.array_equal(np.asarray(shown), np.asarray(found.overlay()))
    assert not np.array_equal(np.asarray(found.overlay("panoptic")), np.asarray(found.overlay()))
    with pytest.raises(InputError, match="`kind=instances`: was not asked for; segment the image with instances=True"):
        found.overlay("instances")
    with pytest.raises(InputError, match="`kind=labels`: unknown; use classes, panoptic or instances"):
        found.overlay("labels")
