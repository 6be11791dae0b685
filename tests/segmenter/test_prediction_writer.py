"""The files of a folder job: in which order they are written, what a resumed job checks, what a new one deletes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ovstrans.errors import InputError
from ovstrans.evaluation.inference import Prediction
from ovstrans.segmenter.prediction_writer import PredictionWriter
from ovstrans.vocabulary.vocabulary import Vocabulary

STREET = Vocabulary("street", (("sky",), ("road", "street"), ("car",)))
CHECKPOINT = {"path": "run/checkpoint.safetensors", "sha256": "abc"}
PREDICTION = Prediction(torch.ones(4, 6, dtype=torch.int64), torch.full((4, 6), 0.5))
IMAGE = torch.zeros(3, 4, 6, dtype=torch.uint8)


def started(path: Path) -> PredictionWriter:
    """A writer that has written one image."""
    writer = PredictionWriter(path, confidence=True)
    writer.begin(STREET, checkpoint=CHECKPOINT, settings={"inference": {"window": None}}, resume=False)
    writer.write("sub/a", IMAGE, PREDICTION)
    return writer


def test_the_label_map_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = started(tmp_path / "out")
    written = {str(path.relative_to(writer.folder)) for path in writer.folder.rglob("*") if path.is_file()}
    assert written == {"classes.json", "labels/sub/a.png", "overlays/sub/a.png", "confidence/sub/a.png"}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "putpalette", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.write("b", IMAGE, PREDICTION)
    assert (writer.folder / "overlays" / "b.png").exists()
    assert not writer.has("b") and writer.has("sub/a")


def test_the_files_of_an_image_are_where_the_writer_says(tmp_path: Path) -> None:
    writer = started(tmp_path / "out")
    files = writer.image_files("sub/a")
    assert set(files) == {"label_map", "overlay", "confidence"} and all(path.exists() for path in files.values())
    assert torch.equal(writer.read_labels("sub/a"), PREDICTION.classes)
    assert writer.common_files() == {}


def test_a_new_job_deletes_the_files_of_the_old_one_and_no_others(tmp_path: Path) -> None:
    writer = started(tmp_path / "out")
    notes = writer.folder / "labels" / "notes.txt"
    notes.write_text("mine")
    writer.begin(STREET, checkpoint=CHECKPOINT, settings={}, resume=False)
    assert not writer.has("sub/a") and notes.exists() and not (writer.folder / "overlays").exists()


def test_label_maps_in_a_folder_that_holds_no_predictions_are_kept(tmp_path: Path) -> None:
    truth = tmp_path / "dataset" / "labels" / "a.png"
    truth.parent.mkdir(parents=True)
    Image.new("L", (2, 2)).save(truth)
    writer = PredictionWriter(tmp_path / "dataset")
    writer.begin(STREET, checkpoint=CHECKPOINT, settings={}, resume=False)
    assert truth.exists()


@pytest.mark.parametrize("other", ["checkpoint", "inference", "classes", "confidence", "panoptic"])
def test_another_job_is_not_resumed(tmp_path: Path, other: str) -> None:
    writer = started(tmp_path / "out")
    checkpoint, inference, vocabulary, things = dict(CHECKPOINT), {"window": None}, STREET, None
    writer.begin(STREET, checkpoint=checkpoint, settings={"inference": inference}, resume=True)
    assert writer.has("sub/a")
    if other == "checkpoint":
        checkpoint["sha256"] = "def"
    elif other == "inference":
        inference = {"window": 64}  # type: ignore[dict-item]
    elif other == "classes":
        vocabulary = Vocabulary("street", (("sky",), ("road",), ("car",)))
    elif other == "confidence":
        writer.confidence = False
    else:
        things = {2}
    with pytest.raises(InputError, match=f"was begun with another value of {other}"):
        writer.begin(vocabulary, checkpoint=checkpoint, settings={"inference": inference}, resume=True, panoptic=things)


def test_a_checkpoint_that_was_moved_is_the_same(tmp_path: Path) -> None:
    writer = started(tmp_path / "out")
    moved = {**CHECKPOINT, "path": "elsewhere.safetensors"}
    writer.begin(STREET, checkpoint=moved, settings={"inference": {"window": None}}, resume=True)
    assert writer.has("sub/a")


def test_a_job_without_an_image_leaves_nothing_behind(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path / "out")
    writer.begin(STREET, checkpoint=CHECKPOINT, settings={}, resume=False)
    writer.remove_if_empty()
    assert not writer.folder.exists()
    kept = started(tmp_path / "out")
    kept.remove_if_empty()
    assert kept.has("sub/a")


def test_what_cannot_be_written_or_resumed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no predictions to resume"):
        PredictionWriter(tmp_path / "out").check(resume=True, force=False)
    writer = started(tmp_path / "out")
    writer.check(resume=True, force=False)
    writer.check(resume=False, force=True)
    with pytest.raises(InputError, match="exists already"):
        writer.check(resume=False, force=False)
