"""What is kept of images' segments until COCO's files are written, and after."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ovstrans.datasets.sample import Segment
from ovstrans.frameworks.mask2former_inference import Instances
from ovstrans.segmenter.coco_files import annotation, results
from ovstrans.segmenter.coco_writer import JOURNAL, SegmentBook
from ovstrans.vocabulary.vocabulary import Vocabulary

STREET = Vocabulary("street", (("sky",), ("car",)), things=frozenset({1}))
MAP = torch.tensor([[1, 1, 2, 2]])
ENTRY = annotation("a", MAP, [Segment(1, 0, False, 2), Segment(2, 1, True, 2)])
MASKS = torch.tensor([[[True, True, False, False]], [[True, False, False, False]], [[False, False, False, True]]])


def rows(name: str, *scores: float) -> list[dict[str, object]]:
    return results(name, Instances(torch.tensor(scores), torch.tensor([1, 1, 1]), MASKS))


def book(folder: Path) -> SegmentBook:
    found = SegmentBook(folder, {1}, {1})
    found.load()
    return found


def test_a_summary_counts_what_can_be_told_apart_also_when_read_again(tmp_path: Path) -> None:
    first = book(tmp_path)
    first.add("a", ENTRY, rows("a", 0.9, 0.8, 0.7))  # the second lies on the first
    first.add("b", annotation("b", MAP * 0, []), [])
    said = {"segments": {"sky": 1, "car": 1}, "instances": {"car": 2}}
    assert first.entry("a", STREET) == said
    killed = book(tmp_path)
    assert killed.entry("a", STREET) == said and killed.has("a") and killed.has("b") and not killed.has("c")
    first.finish(STREET, lambda _: True)
    again = book(tmp_path)
    assert again.entry("a", STREET) == said and again.has("b")
    assert again.entry("b", STREET) == {"segments": {}, "instances": {}}
    assert not (tmp_path / JOURNAL).exists()


def test_only_what_is_done_is_in_the_files_and_later_words_count(tmp_path: Path) -> None:
    mine = book(tmp_path)
    for name, score in (("b", 0.9), ("a", 0.9), ("c", 0.9), ("a", 0.75)):
        mine.add(name, {**ENTRY, "image_id": name, "file_name": f"{name}.png"}, rows(name, score, 0.5, 0.25))
    mine.finish(STREET, lambda name: name != "c")
    entries = json.loads((tmp_path / "panoptic.json").read_text())["annotations"]
    assert [entry["image_id"] for entry in entries] == ["a", "b"]
    written = json.loads((tmp_path / "instances.json").read_text())
    assert [(row["image_id"], row["score"]) for row in written][::3] == [("a", 0.75), ("b", 0.9)] and len(written) == 6


def test_a_line_that_a_kill_cut_off_costs_its_own_image_only(tmp_path: Path) -> None:
    mine = book(tmp_path)
    mine.add("a", ENTRY, rows("a", 0.9, 0.8, 0.7))
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole + whole[: len(whole) // 2])
    mine.add("ö\u2028\udcff", {**ENTRY, "image_id": "b"}, [])
    again = book(tmp_path)
    assert again.has("a") and again.has("ö\u2028\udcff") and len(again.annotations) == 2


def test_images_that_were_done_without_segments_are_not_done(tmp_path: Path) -> None:
    assert not book(tmp_path).has("a") and SegmentBook(tmp_path).has("a")
