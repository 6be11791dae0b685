"""Where datasets are looked for, and by which names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.published.registry import ALIASES, PUBLISHED, lookup_published, resolve_roots
from ovstrans.errors import InputError

from .folders import put_gray, put_image


def put_camvid(root: Path, value: int = 0) -> None:
    for split in ("train", "val"):
        put_image(root / f"camvid/{split}/a.png", [[value]])
        put_gray(root / f"camvid/{split}annot/a.png", [[value]])


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OVSTRANS_DATASETS", raising=False)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_order_of_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_roots() == [Path("datasets")]
    monkeypatch.setenv("DETECTRON2_DATASETS", "/d2")
    assert resolve_roots() == [Path("/d2")]
    monkeypatch.setenv("OVSTRANS_DATASETS", "")
    assert resolve_roots() == [Path("/d2")]
    monkeypatch.setenv("OVSTRANS_DATASETS", f"/a{os.pathsep}~/b")
    assert resolve_roots() == [Path("/a"), Path.home() / "b"]
    assert resolve_roots(Path("/named")) == [Path("/named")]


def test_a_dataset_is_found_in_every_possible_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number, place in enumerate(("datasets", "d2", "own", "named")):
        put_camvid(tmp_path / place, number)

    def value(root: Path | None = None) -> int:
        label = open_dataset("camvid", split="val", data_root=root)[0].label
        assert label is not None
        return int(label[0, 0])

    assert value() == 0
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "d2"))
    assert value() == 1
    monkeypatch.setenv("OVSTRANS_DATASETS", os.pathsep.join([str(tmp_path / "none"), str(tmp_path / "own")]))
    assert value() == 2
    assert value(tmp_path / "named") == 3
    assert value(tmp_path / "named" / "camvid") == 3  # the dataset's own folder
    monkeypatch.chdir(tmp_path / "own" / "camvid")
    assert value(Path()) == 2


@pytest.mark.parametrize(
    ("alias", "name", "split"),
    [
        ("openvocab_ade20k_panoptic_val", "ade20k-150", "val"),
        ("openvocab_ade20k_full_sem_seg_train", "ade20k-847", "train"),
        ("openvocab_coco_2017_val_panoptic_with_sem_seg", "coco-panoptic", "val"),
        ("openvocab_coco_2017_test_stuff_sem_seg", "coco-stuff", "val"),
        ("openvocab_cityscapes_fine_panoptic_val", "cityscapes", "val"),
        ("openvocab_pascal20_sem_seg_val", "pas-20", "val"),
        ("openvocab_pascal_ctx459_sem_seg_val", "context-459", "val"),
        ("pc_full_val_sem_seg", "context-459", "val"),
        ("vipseg_val_image", "vipseg", "val"),
    ],
)
def test_registered_names(alias: str, name: str, split: str, tmp_path: Path) -> None:
    assert ALIASES[alias] == (name, split)
    assert lookup_published(alias) == (PUBLISHED[name], split) and lookup_published(f"{name}:train") == (
        PUBLISHED[name],
        "train",
    )
    with pytest.raises(InputError, match=f"dataset {name}:{split}: not found"):
        open_dataset(alias, split="train", data_root=tmp_path)


def test_aliases_lead_to_datasets_that_exist() -> None:
    assert all(name in PUBLISHED and split in PUBLISHED[name].splits for name, split in ALIASES.values())
    assert not set(ALIASES) & set(PUBLISHED)


def test_a_misspelt_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'ade20k-150'"):
        open_dataset("ade20k-15", split="val", data_root=tmp_path)


def test_a_dataset_can_be_opened_without_labels(tmp_path: Path) -> None:
    put_image(tmp_path / "camvid/val/a.png", [[1]])
    dataset = open_dataset("camvid", split="val", data_root=tmp_path, labels=False)
    assert isinstance(dataset, PublishedDataset) and dataset[0].label is None
    assert dataset.paths(0) == (tmp_path / "camvid/val/a.png", None)
    with pytest.raises(InputError, match="camvid lacks valannot"):
        open_dataset("camvid", split="val", data_root=tmp_path)
    put_image(tmp_path / "coco/train2017/1.jpg", [[1]])
    for name in ("coco-panoptic", "coco-stuff", "coco-stuff-156-15"):
        assert len(open_dataset(name, split="train", data_root=tmp_path, labels=False)) == 1
