"""Names of datasets, and where they lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.folder import FolderDataset, ImageFolder
from ovstrans.errors import InputError

from .test_folder import TOML, put_image, put_label


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my:images"
    for split in ("train", "val"):
        put_image(folder / split / "a.png")
        put_label(folder / f"{split}annot" / "a.png")
    (folder / "dataset.toml").write_text(TOML, encoding="utf-8")
    return folder


def test_a_dataset_is_named_after_its_folder_or_its_description_file(folder: Path, tmp_path: Path) -> None:
    assert open_dataset(f"folder:{folder}", split="val").name == "my:images"
    (tmp_path / "camvid.toml").write_text(f"root = '{folder}'\n{TOML}", encoding="utf-8")
    assert open_dataset(f"folder:{tmp_path}/camvid.toml", split="val").name == "camvid"


def test_a_misspelt_file_and_one_that_is_no_description(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "camvid.toml").write_text(TOML, encoding="utf-8")
    for labels in (True, False):
        with pytest.raises(InputError, match=r"camvid\.tml: no such file or folder .*did you mean .*/camvid\.toml\?"):
            open_dataset(f"folder:{tmp_path}/camvid.tml", split="val", labels=labels)
        with pytest.raises(InputError, match=r"a\.png: neither a folder nor a \.toml file"):
            open_dataset(f"folder:{folder}/train/a.png", split="val", labels=labels)


def test_generated_data_and_their_default_split() -> None:
    dataset = open_dataset("scenes", split="val", size=32)
    assert (dataset.name, dataset.split) == ("scenes", "val")
    assert dataset[0].image.shape == (3, 32, 32)
    assert open_dataset("scenes:train", split="val").split == "train"
    assert len(open_dataset("scenes-attr", split="val").vocabulary) >= 100
    assert open_dataset("scenes-shift", split="val").name == "scenes-shift"


def test_a_path_with_a_colon_and_a_split(folder: Path) -> None:
    assert open_dataset(f"folder:{folder}", split="val").split == "val"
    assert open_dataset(f"folder:{folder}:train", split="val").split == "train"
    assert open_dataset(f"folder:{folder / 'dataset.toml'}:train", split="val").split == "train"


def test_an_existing_path_is_taken_whole_even_if_it_looks_like_a_split(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my").mkdir()
    assert folder.name == "my:images" and open_dataset(f"folder:{folder}", split="val").name == "my:images"


def test_a_folder_without_splits_is_opened_whole(folder: Path) -> None:
    text = TOML.replace("{split}", "train")
    (folder / "dataset.toml").write_text(text, encoding="utf-8")
    assert open_dataset(f"folder:{folder}", split="val").split == "all"
    with pytest.raises(InputError, match="no split 'val'; it has all"):
        open_dataset(f"folder:{folder}:val", split="train")


def test_without_labels_any_folder_will_do(folder: Path) -> None:
    described = open_dataset(f"folder:{folder}", split="train", labels=False)
    assert isinstance(described, FolderDataset) and described[0].label is None
    plain = open_dataset(f"folder:{folder / 'train'}", split="train", labels=False)
    assert isinstance(plain, ImageFolder) and len(plain) == 1
    with pytest.raises(InputError, match=r"dataset\.toml: missing; write one, .*pydoc ovstrans.datasets.description"):
        open_dataset(f"folder:{folder / 'train'}", split="train")
    with pytest.raises(InputError, match=r"splits need a dataset\.toml"):
        open_dataset(f"folder:{folder / 'train'}:val", split="train", labels=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("scene", "did you mean 'scenes'"),
        ("nothing-like-it", "known are scenes, scenes-attr"),
        ("scenes:valid", "no such split"),
        ("folder", "names no folder"),
        ("folder:", "names no folder"),
        ("folder:/no/such/place", "/no/such/place: no such file or folder"),
        ("folder:/no/such/place:val", "/no/such/place: no such file or folder"),
    ],
)
def test_unknown_names_are_answered_with_what_there_is(spec: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        open_dataset(spec, split="val")
    assert message in str(caught.value)


def test_a_bare_path_is_recognised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="did you mean 'folder:train'"):
        open_dataset("train", split="val")
