"""Symlinks to files and folders count as what they point to, everywhere: loops end, links to nothing are named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ovstrans.cli import main
from ovstrans.datasets.catalog import list_datasets, open_dataset
from ovstrans.datasets.check import check_dataset
from ovstrans.datasets.folder import ImageFolder
from ovstrans.datasets.images import find_images, walk_folders
from ovstrans.errors import InputError
from ovstrans.segmenter.inputs import find_image_files

from .published.folders import put_ade, put_gray, put_image, put_lines

ROWS = [[0, 1], [1, 0]]


def put_pairs(images: Path, labels: Path, *names: str) -> None:
    for name in names:
        put_image(images / f"{name}.png", ROWS)
        put_gray(labels / f"{name}.png", ROWS)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Eight images: two in the folder, three behind a link, two behind a link behind it, one a link to a file."""
    top, disk = tmp_path / "set", tmp_path / "disk"
    put_pairs(top / "images", top / "labels", "a", "b")
    put_pairs(disk / "images/one", disk / "labels/one", "c", "d", "e")
    put_pairs(disk / "images/two", disk / "labels/two", "f", "g")
    put_pairs(disk / "images/three", disk / "labels/three", "h")
    for kind in ("images", "labels"):
        (top / kind / "one").symlink_to(disk / kind / "one")
        (disk / kind / "one/two").symlink_to("../two")
        (top / kind / "h.png").symlink_to(disk / kind / "three/h.png")
    (top / "dataset.toml").write_text('classes = ["x", "y"]\nimages = "images"\nlabels = "labels"\n')
    return top


def test_the_counts_of_every_command_agree(
    linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_dataset("folder:set").images == {"set:all": 8}
    dataset = open_dataset("folder:set", split="val")
    assert [dataset[index].name for index in range(8)] == ["a", "b", "h", "one/c", "one/d", "one/e", *[
        f"one/two/{name}" for name in "fg"
    ]]  # fmt: skip
    assert len(ImageFolder(Path("set/images"))) == 8
    found = find_image_files([Path("set/images")], out=Path("out"))
    assert [image.name for image in found] == [dataset[index].name for index in range(8)]
    assert main.run(["data", "check", "folder:set", "--json", "-", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == {"set:all": 8}


def test_a_dataset_that_is_a_link_in_every_part(linked: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(linked)
    assert len(find_images(tmp_path / "mine/images")) == 8
    (tmp_path / "other").mkdir()
    for name in ("images", "labels", "dataset.toml"):
        (tmp_path / "other" / name).symlink_to(linked / name)
    assert list(check_dataset(f"folder:{tmp_path}/other").images.values()) == [8]


def test_splits_behind_links_are_listed(linked: Path, tmp_path: Path) -> None:
    (tmp_path / "disk/sets").mkdir()
    (tmp_path / "mine").mkdir()
    for kind in ("images", "labels"):
        (tmp_path / "disk/sets" / kind).mkdir()
        for split in ("train", "later"):
            (tmp_path / "disk/sets" / kind / split).symlink_to(linked / kind)
        (tmp_path / "mine" / kind).symlink_to(tmp_path / "disk/sets" / kind)
    (tmp_path / "mine/dataset.toml").write_text(
        'classes = ["x", "y"]\nimages = "images/{split}"\nlabels = "labels/{split}"\n'
    )
    assert check_dataset(f"folder:{tmp_path}/mine").images == {"mine:later": 8, "mine:train": 8}


@pytest.mark.parametrize("target", [".", "..", "one", "one/two", "../../set", "loop"])
def test_loops_end(linked: Path, target: str) -> None:
    """A link to a folder that it is in, or to itself, adds nothing; one to other folders adds their images."""
    for kind in ("images", "labels"):
        (linked / kind / "one/loop").symlink_to(target if target != "one" else linked / kind / "one")
    (linked / "labels/loop").symlink_to("loop")
    count = 11 if target == ".." else 8  # disk/images: two and three are in it, one leads to it
    assert len([path for path in find_images(linked / "images") if path.is_file()]) == count
    if target == "loop":
        with pytest.raises(InputError, match="images/one/loop: no such file, only a link to loop"):
            open_dataset(f"folder:{linked}", split="val")
        return
    assert check_dataset(f"folder:{linked}").images == {"set:all": count}


def test_folders_that_link_to_each_other(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put_image(tmp_path / f"{name}/{name}.png", ROWS)
    (tmp_path / "a/to_b").symlink_to("../b")
    (tmp_path / "b/to_c").symlink_to("../c")
    (tmp_path / "c/to_a").symlink_to("../a")
    found = [path.relative_to(tmp_path / "a").as_posix() for path in find_images(tmp_path / "a")]
    assert found == ["a.png", "to_b/b.png", "to_b/to_c/c.png"]
    predicted = find_image_files([tmp_path / "a"], out=tmp_path / "out")
    assert [image.name for image in predicted] == ["a", "to_b/b", "to_b/to_c/c"]


def test_links_to_nothing_are_named(linked: Path) -> None:
    for kind in ("images", "labels"):
        (linked / kind / "away").symlink_to("/unmounted/disk")
        (linked / kind / "notes.txt").symlink_to("/unmounted/notes.txt")  # no image, no folder
    with pytest.raises(InputError, match="images/away: no such file, only a link to /unmounted/disk"):
        open_dataset(f"folder:{linked}", split="val")
    result = check_dataset(f"folder:{linked}")
    assert result.images == {"set:all": 8} and len(result.faults) == 1
    with pytest.raises(InputError, match="images/away: no such file, only a link to"):
        ImageFolder(linked / "images")
    found = [str(image.path) for image in find_image_files([linked / "images"], out=Path("out"))]
    assert len(found) == 9 and f"{linked}/images/away" in found  # `predict` says that it cannot be read


def test_published_datasets_behind_links(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    put_pairs(disk / "val/city", disk / "valannot/city", "c", "d")
    put_pairs(tmp_path / "camvid/val", tmp_path / "camvid/valannot", "a")
    for name in ("val", "valannot"):
        (tmp_path / f"camvid/{name}/city").symlink_to(disk / name / "city")
        (disk / name / "city/loop").symlink_to(".")
    (status,) = list_datasets("camvid", data_root=tmp_path)
    assert [each.location and len(each.location.pairs) for each in status.splits] == [None, 3]
    assert check_dataset("camvid", data_root=tmp_path).images == {"camvid:val": 3}
    (tmp_path / "camvid/val/away").symlink_to("/unmounted/disk")
    with pytest.raises(InputError, match="val/away: no such file, only a link to /unmounted/disk"):
        open_dataset("camvid:val", split="val", data_root=tmp_path)


def test_scenes_and_videos_behind_links(tmp_path: Path) -> None:
    scene = tmp_path / "disk/urban/street"
    put_image(scene / "ADE_val_00000001.JPG", ROWS)
    put_ade(scene / "ADE_val_00000001_seg.PNG", [[2978, 3148], [2420, 0]])
    (tmp_path / "ADE20K_2021_17_01/images/ADE").mkdir(parents=True)
    (tmp_path / "ADE20K_2021_17_01/images/ADE/validation").symlink_to(tmp_path / "disk")
    assert check_dataset("ade20k-847:val", data_root=tmp_path).images == {"ade20k-847:val": 1}
    put_lines(tmp_path / "VSPW_480p/val.txt", "one")
    put_pairs(tmp_path / "disk/film/origin", tmp_path / "disk/film/mask", "1", "2")
    (tmp_path / "VSPW_480p/data").mkdir()
    (tmp_path / "VSPW_480p/data/one").symlink_to(tmp_path / "disk/film")
    assert check_dataset("vspw", data_root=tmp_path).images == {"vspw:val": 2}


def test_a_folder_behind_a_link_that_may_not_be_read(
    linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("one/two"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="images/one/two: no permission to read this folder"):
        find_images(linked / "images")


def test_hidden_folders_stay_hidden_and_skipped_ones_skipped(tmp_path: Path) -> None:
    put_image(tmp_path / "disk/a.png", ROWS)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/.cache").symlink_to(tmp_path / "disk")
    assert find_images(tmp_path / "set") == []
    (tmp_path / "set/ADE_1").symlink_to(tmp_path / "disk")
    assert len(list(walk_folders(tmp_path / "set", "ADE_"))) == 2  # .cache is, then, no exception
