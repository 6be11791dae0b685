from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.published.prepare import Preparation, convert, plan_preparation
from ovstrans.datasets.published.registry import PUBLISHED
from ovstrans.errors import InputError
from ovstrans.progress import ProgressReporter
from tests.datasets.published.folders import put_ade, put_gray, put_image, put_lines
from tests.datasets.published.test_layouts import CASES

PREPARABLE = [
    "ade150-original",
    "ade847-original",
    "ade847-original-below-ade",
    "stuff-original",
    "cityscapes-original",
    "pas20-original",
    "pas21-original",
    "context59-original",
    "context459-original",
]


def put_case(case: str, root: Path) -> tuple[str, list[list[int]]]:
    """Write the files of a case of the catalog's tests; returns its data name and the right classes."""
    spec, _, image, label, put, numbers, classes, others = CASES[case]
    put_image(root / image, numbers)
    put(root / label, numbers)
    for name, lines in others.items():
        put_lines(root / name, *lines)
    return spec, classes


def work_of(spec: str, root: Path, out: Path | None = None) -> Preparation:
    name, _, split = spec.partition(":")
    work = plan_preparation(PUBLISHED[name], split, [root], out)
    assert isinstance(work, Preparation)
    return work


def run(work: Preparation, **options: bool) -> list[str]:
    return convert(work, ProgressReporter(None, "prepare", len(work.source)), workers=2, **options)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("case", PREPARABLE)
def test_what_is_prepared_reads_as_the_original_did(case: str, elsewhere: bool, tmp_path: Path) -> None:
    spec, classes = put_case(case, tmp_path / "data")
    root = tmp_path / "other" if elsewhere else tmp_path / "data"
    before = open_dataset(spec, split="", data_root=tmp_path / "data")[0]
    assert run(work_of(spec, tmp_path / "data", tmp_path / "other" if elsewhere else None)) == []
    dataset = open_dataset(spec, split="", data_root=root)
    assert dataset.location.layout.name == "prepared"  # type: ignore[attr-defined]
    after = dataset[0]
    assert after.label is not None and after.label.tolist() == classes
    assert after.image.equal(before.image)


def test_label_files_hold_class_indices_in_8_or_16_bits(tmp_path: Path) -> None:
    for case in ("stuff-original", "ade847-original"):
        spec, classes = put_case(case, tmp_path)
        work = work_of(spec, tmp_path)
        run(work)
        picture = Image.open(work.label_path(0))
        assert np.array(picture).tolist() == classes
        assert picture.mode == ("L" if case == "stuff-original" else "I;16")
        assert work.label_path(0).suffix == (".png" if case == "stuff-original" else ".tif")


def test_a_large_ade_image_is_written_at_the_size_it_is_evaluated_at(tmp_path: Path) -> None:
    scene = tmp_path / "ADE20K_2021_17_01/images/ADE/validation/home/hall"
    rows = [[2978 if column < 400 else 2420 for column in range(1100)] for _ in range(600)]
    put_image(scene / "ADE_val_00000001.jpg", rows)
    put_ade(scene / "ADE_val_00000001_seg.png", rows)
    before = open_dataset("ade20k-847:val", split="", data_root=tmp_path)[0]
    run(work_of("ade20k-847:val", tmp_path))
    after = open_dataset("ade20k-847:val", split="", data_root=tmp_path)[0]
    assert after.image.shape == before.image.shape == (3, 512, 939)
    assert after.label is not None and before.label is not None and after.label.equal(before.label)
    assert (after.image.int() - before.image.int()).abs().max() <= 8  # JPEG once more


def test_an_interrupted_preparation_goes_on(tmp_path: Path) -> None:
    for number in range(6):
        put_image(tmp_path / f"coco/val2017/{number}.jpg", [[0, 1]])
        put_gray(tmp_path / f"coco/stuffthingmaps/val2017/{number}.png", [[0, 255]])
    work = work_of("coco-stuff:val", tmp_path)
    run(work)
    for number in (1, 4):
        work.label_path(number).unlink()
    before = work.label_path(0).stat().st_mtime_ns
    again = work_of("coco-stuff:val", tmp_path)
    assert again.list_remaining() == [1, 4]
    run(again)
    assert again.list_remaining() == [] and work.label_path(0).stat().st_mtime_ns == before
    assert again.list_remaining(force=True) == list(range(6))


def test_an_image_whose_copy_is_missing_is_converted_again(tmp_path: Path) -> None:
    spec, _ = put_case("pas20-original", tmp_path)
    work = work_of(spec, tmp_path)
    run(work)
    assert work.list_remaining() == []
    work.image_path(0).unlink()
    assert work.list_remaining() == [0]


def test_a_broken_file_is_named_and_the_others_are_converted(tmp_path: Path) -> None:
    for number in range(3):
        put_image(tmp_path / f"coco/val2017/{number}.jpg", [[0, 1]])
        put_gray(tmp_path / f"coco/stuffthingmaps/val2017/{number}.png", [[0, 255]])
    (tmp_path / "coco/stuffthingmaps/val2017/1.png").write_bytes(b"\x89PNG")
    work = work_of("coco-stuff:val", tmp_path)
    flaws = run(work)
    assert len(flaws) == 1 and "stuffthingmaps/val2017/1.png" in flaws[0]
    assert work.label_path(0).exists() and work.label_path(2).exists() and not work.label_path(1).exists()


def test_a_split_with_classes_held_back_shares_the_files_of_another_dataset(tmp_path: Path) -> None:
    put_case("split-train", tmp_path)
    with pytest.raises(InputError, match="has the label maps of coco-stuff; prepare that"):
        plan_preparation(PUBLISHED["coco-stuff-156-15"], "train", [tmp_path])


def test_what_needs_no_preparation_says_so(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put_image(tmp_path / f"camvid/val/{name}.png", [[0, 1]])
        put_gray(tmp_path / f"camvid/valannot/{name}.png", [[0, 1]])
    assert "read as it is" in str(plan_preparation(PUBLISHED["camvid"], "val", [tmp_path]))
    spec, _ = put_case("stuff-prepared", tmp_path)
    assert "prepared already" in str(plan_preparation(PUBLISHED[spec.partition(":")[0]], "val", [tmp_path]))
    with pytest.raises(InputError, match="not found"):
        plan_preparation(PUBLISHED["pas-20"], "val", [tmp_path])
