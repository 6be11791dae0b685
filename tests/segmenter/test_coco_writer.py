"""What is kept of images' segments until COCO's files are written, and after."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ovstrans.datasets.sample import Segment
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.segmenter.coco import make_annotation, make_instance_rows
from ovstrans.segmenter.coco_writer import JOURNAL, CocoWriter
from ovstrans.vocabulary.vocabulary import Vocabulary

STREET = Vocabulary("street", (("sky",), ("car",)), things=frozenset({1}))
MAP = torch.tensor([[1, 1, 2, 2]])
ENTRY = make_annotation("a", MAP, [Segment(1, 0, False, 2), Segment(2, 1, True, 2)])
MASKS = torch.tensor([[[True, True, False, False]], [[True, False, False, False]], [[False, False, False, True]]])


def rows(name: str, *scores: float) -> list[dict[str, object]]:
    return make_instance_rows(name, Instances(torch.tensor(scores), torch.tensor([1, 1, 1]), MASKS))


def loaded_writer(folder: Path) -> CocoWriter:
    writer = CocoWriter(folder, {1}, {1})
    writer.load()
    return writer


def counts(writer: CocoWriter, name: str) -> tuple[dict[str, int] | None, dict[str, int] | None]:
    return writer.count_segments(name, STREET), writer.count_instances(name, STREET)


def test_distinct_instances_are_counted_also_after_a_restart(tmp_path: Path) -> None:
    first = loaded_writer(tmp_path)
    first.add("a", ENTRY, rows("a", 0.9, 0.8, 0.7))  # the second lies on the first
    first.add("b", make_annotation("b", MAP * 0, []), [])
    expected = ({"sky": 1, "car": 1}, {"car": 2})
    assert counts(first, "a") == expected
    killed = loaded_writer(tmp_path)
    assert counts(killed, "a") == expected and killed.has("a") and killed.has("b") and not killed.has("c")
    first.finish(STREET, lambda _: True)
    again = loaded_writer(tmp_path)
    assert counts(again, "a") == expected and again.has("b")
    assert counts(again, "b") == ({}, {})
    assert not (tmp_path / JOURNAL).exists()


def test_only_images_that_are_done_are_written_with_their_latest_entries(tmp_path: Path) -> None:
    mine = loaded_writer(tmp_path)
    for name, score in (("b", 0.9), ("a", 0.9), ("c", 0.9), ("a", 0.75)):
        mine.add(name, {**ENTRY, "image_id": name, "file_name": f"{name}.png"}, rows(name, score, 0.5, 0.25))
    mine.finish(STREET, lambda name: name != "c")
    entries = json.loads((tmp_path / "panoptic.json").read_text())["annotations"]
    assert [entry["image_id"] for entry in entries] == ["a", "b"]
    written = json.loads((tmp_path / "instances.json").read_text())
    assert [(row["image_id"], row["score"]) for row in written][::3] == [("a", 0.75), ("b", 0.9)] and len(written) == 6


def test_a_journal_line_cut_off_by_a_kill_loses_its_own_image_only(tmp_path: Path) -> None:
    mine = loaded_writer(tmp_path)
    mine.add("a", ENTRY, rows("a", 0.9, 0.8, 0.7))
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole + whole[: len(whole) // 2])
    mine.add("ö\u2028\udcff", {**ENTRY, "image_id": "b"}, [])
    again = loaded_writer(tmp_path)
    assert again.has("a") and again.has("ö\u2028\udcff") and len(again.annotations) == 2


def test_an_image_without_its_segments_is_not_done(tmp_path: Path) -> None:
    assert not loaded_writer(tmp_path).has("a") and CocoWriter(tmp_path).has("a")
