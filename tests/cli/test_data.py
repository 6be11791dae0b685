from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ovstrans.cli import main
from tests.datasets.published.folders import put_gray, put_image


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OVSTRANS_DATASETS", "DETECTRON2_DATASETS"):
        monkeypatch.delenv(name, raising=False)


def put_camvid(root: Path, count: int = 3) -> None:
    for number in range(count):
        put_image(root / f"camvid/val/{number}.png", [[0, 1] * 8] * 16)
        put_gray(root / f"camvid/valannot/{number}.png", [[number, 11] * 8] * 16)


def test_list_says_what_is_there_and_where_it_looked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_camvid(Path("sets"))
    put_image(Path("sets/coco/val2017/7.jpg"), [[0]])
    put_gray(Path("sets/coco/stuffthingmaps/val2017/7.png"), [[0]])
    put_image(Path("sets/coco/val2017/8.jpg"), [[0]])
    monkeypatch.setenv("DETECTRON2_DATASETS", "sets")
    assert main.run(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert "looked in sets" in out and "camvid" in out and "3" in out and "scenes" in out
    assert main.run(["data", "list", "--json", "-"]) == 0
    sets = json.loads(capsys.readouterr().out)["datasets"]
    assert sets["camvid"]["splits"] == {
        "train": None,
        "val": {"layout": "original", "root": "sets/camvid", "images": 3, "missing": 0},
    }
    assert sets["coco-stuff"]["splits"]["val"] == {
        "layout": "original",
        "root": "sets/coco",
        "images": 2,
        "missing": 1,
    }
    assert sets["ade20k-847"]["splits"] == {"train": None, "val": None} and len(sets) == 14
    assert main.run(["data", "list", "--data-root", "nowhere", "--json", "-"]) == 0
    assert not any(any(entry["splits"].values()) for entry in json.loads(capsys.readouterr().out)["datasets"].values())


def test_list_of_one_says_every_layout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["data", "list", "pas-20"]) == 0
    out = capsys.readouterr().out
    assert "pascal_voc_d2" in out and "SegmentationClass" in out and "camvid" not in out
    assert main.run(["data", "list", "pas20"]) == 2
    assert "did you mean 'pas-20'" in capsys.readouterr().err


def test_check_lists_all_faults_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    put_camvid(Path("sets"), 5)
    assert main.run(["data", "check", "camvid", "--data-root", "sets"]) == 0
    assert "camvid:val: 5 images, no fault" in capsys.readouterr().err
    put_gray(Path("sets/camvid/valannot/1.png"), [[50] * 16] * 16)
    put_gray(Path("sets/camvid/valannot/2.png"), [[0] * 4] * 4)
    Path("sets/camvid/valannot/3.png").unlink()
    assert main.run(["data", "check", "camvid:val", "--data-root", "sets"]) == 2
    out, err = capsys.readouterr()
    assert [f"valannot/{number}.png" in out for number in range(5)] == [False, True, True, True, False]
    assert err.splitlines()[-1] == "error: dataset camvid:val: 3 faults in 5 images"
    assert main.run(["data", "check", "camvid", "--data-root", "sets", "--json", "-", "--quiet"]) == 2
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 3
    assert main.run(["data", "check", "camvid:test", "--data-root", "sets"]) == 2
    assert main.run(["data", "check", "camvid", "--data-root", "empty"]) == 2
    assert "not found in empty (no such folder)" in capsys.readouterr().err


def test_check_looks_at_every_split_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/dataset.toml").write_text('classes = ["a", "b"]\nimages = "{split}"\nlabels = "{split}annot"')
    for split, value in (("train", 0), ("val", 9), ("later", 0)):
        put_image(Path(f"mine/{split}/1.png"), [[0]])
        put_gray(Path(f"mine/{split}annot/1.png"), [[value]])
    assert main.run(["data", "check", "folder:mine"]) == 2
    out, err = capsys.readouterr()
    assert "mine/valannot/1.png: label value 9" in out and "mine:train: 1 image, no fault" in err
    assert "mine:later: 1 image" in err and err.splitlines()[-1].endswith("1 fault in 3 images")
    assert main.run(["data", "check", "folder:mine:train", "--quiet"]) == 0


def test_a_broken_listing_is_a_fault_among_others(capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        put_image(Path(f"sets/VSPW_480p/data/{split}/origin/1.jpg"), [[0]])
        put_gray(Path(f"sets/VSPW_480p/data/{split}/mask/1.png"), [[200]])
    Path("sets/VSPW_480p/train.txt").write_text("")
    Path("sets/VSPW_480p/val.txt").write_text("val\n")
    assert main.run(["data", "check", "vspw", "--data-root", "sets"]) == 2
    out, err = capsys.readouterr()
    assert "train.txt: lists nothing" in out and "mask/1.png: label value 200" in out
    assert err.splitlines()[-1] == "error: dataset vspw: 2 faults in 1 image"


def test_show_draws_a_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    put_camvid(Path("sets"), 5)
    assert main.run(["data", "show", "camvid", "--data-root", "sets", "-n", "3"]) == 0
    assert "ovstrans-out/data/camvid-val.png" in capsys.readouterr().err
    few = Image.open("ovstrans-out/data/camvid-val.png").size
    assert main.run(["data", "show", "camvid", "--data-root", "sets", "-n", "5", "--out", "more.png"]) == 0
    assert Image.open("more.png").height > few[1] > 300
    assert main.run(["data", "show", "scenes", "--size", "64", "-n", "1", "--out", "more.png"]) == 2
    assert main.run(["data", "show", "scenes", "--size", "64", "-n", "1", "--out", "scenes.png"]) == 0


def test_prepare_converts_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        put_image(Path(f"sets/coco/val2017/{number}.jpg"), [[0, 1]])
        put_gray(Path(f"sets/coco/stuffthingmaps/val2017/{number}.png"), [[0, 181]])
    command = ["data", "prepare", "coco-stuff", "--data-root", "sets"]
    assert main.run(command) == 0
    assert "coco-stuff:val: 4 images in sets/coco (4 converted now)" in capsys.readouterr().err
    made = Path("sets/coco/stuffthingmaps_detectron2/val2017")
    assert sorted(path.name for path in made.iterdir()) == [f"{number}.png" for number in range(4)]
    (made / "2.png").unlink()
    assert main.run(command) == 0
    assert "(1 converted now)" in capsys.readouterr().err
    Path("sets/coco/stuffthingmaps/val2017/2.png").write_bytes(b"x")
    (made / "2.png").unlink()
    assert main.run(command) == 2
    assert "1 image could not be converted: sets/coco/stuffthingmaps/val2017/2.png" in capsys.readouterr().err
    assert main.run(["data", "prepare", "nothing"]) == 2
    Path("sets/coco/train2017").mkdir()
    Path("sets/coco/stuffthingmaps/train2017").mkdir()
    capsys.readouterr()
    assert main.run(command) == 2  # nothing of one split is said in place of the faults of the other
    message = capsys.readouterr().err.splitlines()[-1]
    assert "train2017: no image" in message and "val2017/2.png" in message


def test_prepare_says_how_to_go_on_when_terminated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ovstrans.datasets.published import prepare

    for number in range(3):
        put_image(Path(f"sets/coco/val2017/{number}.jpg"), [[0, 1]])
        put_gray(Path(f"sets/coco/stuffthingmaps/val2017/{number}.png"), [[0, 181]])
    plain = prepare._convert

    def convert(work: prepare.Preparation, index: int) -> None:
        if index == 2:
            raise main._Terminated
        plain(work, index)

    monkeypatch.setattr(prepare, "_convert", convert)
    command = ["data", "prepare", "coco-stuff:val", "--data-root", "sets", "--workers", "1", "--quiet"]
    assert main.run(command) == 143
    assert "2 of 3 images are converted; run it again to go on" in capsys.readouterr().err
