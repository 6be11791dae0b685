from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.check import check_dataset, find_faults
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.published.registry import PUBLISHED, locate_dataset
from ovstrans.errors import InputError
from ovstrans.progress import ProgressReporter
from tests.datasets.published.folders import put_gray, put_image


def found(root: Path) -> list[str]:
    layout = locate_dataset(PUBLISHED["camvid"], "val", [root])
    assert layout is not None
    dataset = PublishedDataset(layout, allow_missing=True)
    return find_faults(dataset, ProgressReporter(None, "check", len(dataset)), workers=2)


def put_pairs(root: Path, *names: str) -> None:
    for name in names:
        put_image(root / f"camvid/val/{name}.png", [[0, 1], [2, 3]])
        put_gray(root / f"camvid/valannot/{name}.png", [[0, 1], [10, 11]])


def test_a_sound_dataset_has_no_fault(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a", "b", "c")
    assert found(tmp_path) == []


def test_every_fault_is_named_with_its_path(tmp_path: Path) -> None:
    put_pairs(tmp_path, *"abcdefg")
    images, labels = tmp_path / "camvid/val", tmp_path / "camvid/valannot"
    (labels / "a.png").unlink()  # a missing label
    put_gray(labels / "b.png", [[0, 77], [1, 1]])  # a label out of range
    cut = (images / "c.png").read_bytes()
    (images / "c.png").write_bytes(cut[: len(cut) // 2])  # a truncated image
    put_gray(labels / "d.png", [[0, 1, 2], [0, 1, 2]])  # another size
    (images / "e.png").write_text("no picture")  # two faults in one pair
    put_gray(labels / "e.png", [[99, 1], [1, 1]])
    (labels / "f.png").write_bytes(b"")
    seen = found(tmp_path)
    assert len(seen) == 7
    for path, words in (
        (labels / "a.png", "has no label map"),
        (labels / "b.png", "77"),
        (images / "c.png", "image"),
        (labels / "d.png", "3x2"),
        (images / "e.png", "not an image"),
        (labels / "e.png", "99"),
        (labels / "f.png", "not an image"),
    ):
        assert any(str(path) in fault and words in fault for fault in seen), path


def test_every_fault_of_a_described_folder_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text(
        'classes = ["a", "b"]\nimages = "images"\nlabels = "labels"\nlist = "all.txt"'
    )
    (tmp_path / "all.txt").write_text("".join(f"{name}\n" for name in "abcdx"))
    for name in "abcd":
        put_image(tmp_path / f"images/{name}.png", [[0, 1], [2, 3]])
        put_gray(tmp_path / f"labels/{name}.png", [[0, 1], [1, 255]])
    (tmp_path / "labels/a.png").unlink()
    (tmp_path / "images/b.png").write_bytes(b"")  # two faults in one pair
    put_gray(tmp_path / "labels/b.png", [[7, 1], [1, 1]])
    put_gray(tmp_path / "labels/c.png", [[0, 1, 0], [1, 1, 0]])
    dataset = open_dataset(f"folder:{tmp_path}", split="all", allow_missing=True)
    seen = find_faults(dataset, ProgressReporter(None, "check", len(dataset)))
    assert len(seen) == 5
    for path, words in (
        ("images/x", "no such image"),
        ("labels/a.png", "has no label map"),
        ("images/b.png", "not an image"),
        ("labels/b.png", "label value 7"),
        ("labels/c.png", "3x2"),
    ):
        assert any(str(tmp_path / path) in fault and words in fault for fault in seen), path
    with pytest.raises(InputError, match=r"images/x: listed.* \(and 1 more\)"):
        open_dataset(f"folder:{tmp_path}", split="all")


def test_frames_of_unequal_size_are_named(tmp_path: Path) -> None:
    top = tmp_path / "VSPW_480p"
    for video, frames in (("one", 4), ("two", 2)):
        for frame in range(frames):
            side = 3 if (video, frame) == ("one", 2) else 2
            put_image(top / f"data/{video}/origin/{frame}.jpg", [[0] * side] * 2)
            put_gray(top / f"data/{video}/mask/{frame}.png", [[1] * side] * 2)
    (top / "val.txt").write_text("one\ntwo\n")
    dataset = open_dataset("vspw:val", split="val", data_root=tmp_path, allow_missing=True)
    (seen,) = find_faults(dataset, ProgressReporter(None, "check", 6))
    assert str(top / "data/one/origin/2.jpg") in seen and "3x2" in seen and "2x2" in seen


def test_generated_data_can_be_checked_too() -> None:
    dataset = open_dataset("scenes:train", split="train", size=32)
    dataset._length = 3  # type: ignore[attr-defined]
    assert find_faults(dataset, ProgressReporter(None, "check", 3)) == []


def test_a_folder_with_one_split_of_any_name_is_checked(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/dataset.toml").write_text('classes = ["a", "b"]\nimages = "{split}"\nlabels = "{split}annot"')
    for split, expected in (("val", ["val"]), ("later", ["later", "val"])):
        put_image(tmp_path / f"set/{split}/1.png", [[0, 1]])
        put_gray(tmp_path / f"set/{split}annot/1.png", [[0, 1]])
        assert check_dataset(f"folder:{tmp_path}/set").images == {f"set:{each}": 1 for each in expected}
