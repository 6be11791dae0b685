"""`ovstrans predict` end to end: a tiny checkpoint, pictures in a temporary folder, files read by pillow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.cli import main
from ovstrans.datasets.catalog import open_dataset
from ovstrans.files import write_text
from ovstrans.masks.file import save_mask
from ovstrans.segmenter import options as options_module
from ovstrans.segmenter import predict as predict_module
from ovstrans.segmenter import segmenter as segmenter_module
from ovstrans.vocabulary.catalog import load_published_vocabulary
from tests.datasets.raw_files import png_bytes, put_tiff
from tests.segmenter.case import deeplab_checkpoint, draw, write_run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in its own folder, and a finished run in it."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), deeplab_checkpoint())


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status, and what --json wrote ({} where it wrote nothing)."""
    Path("summary.json").unlink(missing_ok=True)
    status = main.run(["predict", *arguments, "--json", "summary.json", "--quiet", "--device", "cpu"])
    return status, json.loads(Path("summary.json").read_text()) if Path("summary.json").exists() else {}


def read(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def files_in(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_words_of_the_users_choice() -> None:
    draw("photo.jpg")
    status, summary = run(
        "run", "photo.jpg", "--classes", "road, pavement,  a red   car", "--confidence", "--out", "seen"
    )
    assert status == 0 and summary["schema"] == "ovstrans.predictions/1"
    assert files_in("seen") == {"classes.json", *(f"{kind}/photo.png" for kind in ("labels", "overlays", "confidence"))}
    described = json.loads(Path("seen/classes.json").read_text())
    assert [entry["name"] for entry in described["classes"]] == ["road", "pavement", "a red car"]
    with Image.open("seen/labels/photo.png") as picture:
        assert picture.mode == "P" and picture.size == (80, 64)
        palette = np.array(picture.getpalette()).reshape(-1, 3)[:3].tolist()
    assert palette == [entry["color"] for entry in described["classes"]]
    labels = read("seen/labels/photo.png")
    assert labels.max() <= 2
    (entry,) = summary["images"]
    assert entry["file"] == "photo.jpg" and entry["size"] == [64, 80]
    for found in entry["classes"]:
        assert found["share"] == pytest.approx((labels == found["index"]).mean())
        assert found["name"] == described["classes"][found["index"]]["name"]
    assert sum(found["share"] for found in entry["classes"]) == pytest.approx(1)
    confidence = read("seen/confidence/photo.png")
    assert confidence.dtype == np.uint8 and confidence.shape == (64, 80)
    assert confidence.min() >= 255 // 3  # the winner of three has at least a third
    assert read("seen/overlays/photo.png").shape[2] == 3


def test_the_prediction_is_the_frameworks_own() -> None:
    """The label map equals scores computed here, at the image's size, without any of the evaluation room."""
    from ovstrans.frameworks import registry

    draw("photo.png", 96, 64)
    assert run("run", "photo.png")[0] == 0
    image = torch.from_numpy(read("photo.png").copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        scores = registry.restore(deeplab_checkpoint()).segment(image)[0]
    assert (read("ovstrans-out/predict/labels/photo.png") == scores.argmax(0).numpy()).mean() > 0.999


def test_the_checkpoints_own_words_and_the_default_run() -> None:
    draw("a photo.png")
    write_run(Path("ovstrans-out/run"), deeplab_checkpoint())
    status, summary = run("a photo.png", "--no-overlay")
    assert status == 0
    assert summary["checkpoint"] == "ovstrans-out/run/checkpoint.safetensors"
    assert summary["classes"] == list(open_dataset("scenes", split="val").vocabulary.names)
    assert files_in("ovstrans-out/predict") == {"classes.json", "labels/a photo.png"}


def test_a_folder_with_folders_in_it() -> None:
    draw("in/one.png", 64, 48)
    draw("in/day/two.jpg", 48, 64, seed=1)
    draw("in/night/two.png", seed=2)
    status, summary = run("run/checkpoint.safetensors", "in", "--out", "seen", "--no-overlay")
    assert status == 0 and len(summary["images"]) == 3
    assert files_in("seen") == {"classes.json", "labels/one.png", "labels/day/two.png", "labels/night/two.png"}
    assert read("seen/labels/day/two.png").shape == (64, 48)


def test_300_classes_are_16_bit() -> None:
    draw("photo.png")
    write_text("many.txt", "".join(f"thing {number}\n" for number in range(300)))
    status, summary = run("run", "photo.png", "--vocabulary", "many.txt", "--out", "seen")
    assert status == 0
    with Image.open("seen/labels/photo.png") as picture:
        assert picture.mode == "I;16"
    found = {entry["index"] for entry in summary["images"][0]["classes"]}
    assert set(np.unique(read("seen/labels/photo.png"))) == found and max(found) < 300
    assert json.loads(Path("seen/classes.json").read_text())["encoding"] == "16-bit gray"


def test_vocabularies_by_name_and_their_colours() -> None:
    draw("photo.png")
    status, summary = run("run", "photo.png", "--vocabulary", "cityscapes", "--out", "seen", "--no-overlay")
    vocabulary = load_published_vocabulary("cityscapes")
    assert status == 0 and summary["classes"] == list(vocabulary.names)
    with Image.open("seen/labels/photo.png") as picture:
        assert picture.getpalette()[: 3 * len(vocabulary)] == vocabulary.palette().flatten().tolist()
    assert run("run", "photo.png", "--vocabulary", "scenes-attr", "--out", "more", "--no-overlay")[0] == 0


def test_windows_agree_with_the_whole_on_a_smooth_image(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(0, 255, 160)[None, :, None] * np.array([1, 0.5, 0.2])
    Image.fromarray(np.repeat(ramp, 128, axis=0).astype(np.uint8)).save("ramp.png")
    assert run("run", "ramp.png", "--classes", "sky, sand", "--out", "whole")[0] == 0
    status, summary = run(
        "run", "ramp.png", "--classes", "sky, sand", "--window", "96", "--stride", "32", "--out", "cut"
    )
    assert status == 0 and summary["images"][0]["window"] == 96
    whole, cut = read("whole/labels/ramp.png"), read("cut/labels/ramp.png")
    assert (whole == cut).mean() > 0.9


def test_a_large_image_is_cut_into_windows_by_itself_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options_module, "LARGEST", 64 * 80)
    monkeypatch.setattr(options_module, "DEFAULT_WINDOW", 64)
    draw("small.png")
    draw("large.png", 160, 96)
    arguments = ["predict", "run", "small.png", "large.png", "--json", "s.json", "--device", "cpu", "--flip"]
    assert main.run(arguments) == 0
    small, large = json.loads(Path("s.json").read_text())["images"]
    assert small["window"] is None and large["window"] == 64
    assert "large.png: 160x96 is scored in windows of 64 pixels" in capsys.readouterr().err
    assert read("ovstrans-out/predict/labels/large.png").shape == (96, 160)
    assert run("run", "large.png", "--long-side", "80", "--out", "less")[1]["images"][0]["window"] is None


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    draw("photo.png")
    assert run("run", "photo.png", "--classes", "a, b", "--out", "seen")[0] == 0
    before = Path("seen/classes.json").read_bytes()
    assert run("run", "photo.png", "--classes", "c, d, e", "--out", "seen")[0] == 2
    assert "seen: exists already; give another --out, or --force to replace it" in capsys.readouterr().err
    assert Path("seen/classes.json").read_bytes() == before
    draw("other.png")
    assert run("run", "other.png", "--classes", "c, d, e", "--out", "seen", "--force")[0] == 0
    assert files_in("seen") == {"classes.json", "labels/other.png", "overlays/other.png"}  # none of the old numbering


def test_an_interrupt_leaves_whole_files_and_resume_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        draw(f"in/{number}.png", seed=number)
    assert run("run", "in", "--out", "straight")[0] == 0
    plain, seen = predict_module.read_image, []

    def tired(path: Path) -> torch.Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(path)
        return plain(path)

    monkeypatch.setattr(predict_module, "read_image", tired)
    assert run("run", "in", "--out", "seen")[0] == 130
    assert "seen: 2 of 4 images are done; give the same options and --resume to go on" in capsys.readouterr().err
    assert {name for name in files_in("seen") if name.startswith("labels")} == {"labels/0.png", "labels/1.png"}
    monkeypatch.setattr(predict_module, "read_image", plain)
    assert run("run", "in", "--classes", "a, b", "--out", "seen", "--resume")[0] == 2
    assert "seen: was begun with another value of" in capsys.readouterr().err
    status, summary = run("run", "in", "--out", "seen", "--resume")
    assert status == 0 and [Path(entry["file"]).name for entry in summary["images"]] == [f"{n}.png" for n in range(4)]
    assert files_in("seen") == files_in("straight")
    for name in files_in("seen") - {"classes.json"}:
        assert Path("seen", name).read_bytes() == Path("straight", name).read_bytes()


def test_an_interrupt_before_the_first_image_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw("photo.png")

    def tired(path: Path) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_module, "read_image", tired)
    assert run("run", "photo.png", "--out", "seen")[0] == 130
    assert not Path("seen").exists()


def test_broken_images_are_named_and_the_others_done(capsys: pytest.CaptureFixture[str]) -> None:
    draw("in/good.png")
    draw("in/cut.png", seed=3)
    whole = Path("in/cut.png").read_bytes()
    Path("in/cut.png").write_bytes(whole[: len(whole) // 2])
    Path("in/text.jpg").write_text("not an image")
    status, summary = run("run", "in", "--out", "seen")
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and "in/cut.png: a broken image" in lines[0] and "in/text.jpg: not an image" in lines[1]
    assert [entry["file"] for entry in summary["images"]] == ["in/good.png"]
    assert [entry["file"] for entry in summary["failed"]] == ["in/cut.png", "in/text.jpg"]
    assert "labels/good.png" in files_in("seen") and not any("cut" in name for name in files_in("seen"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "gone.png"), "gone.png: no such file or folder"),
        (("run", "car"), 'quote all of them together, as --classes "road, car"'),
        (("car", "photo.png"), "car: no such run, checkpoint or image; if it is the name of a class, quote all"),
        (("run", "empty"), "empty: no image in this folder"),
        (("run", "cut.png"), "cut.png: a broken image"),
        (("run", "words.txt"), "words.txt: not an image"),
        (("run",), "run: no images given"),
        (("photo.png",), "photo.png: an image, and no checkpoint before it"),
        (("empty", "photo.png"), "empty: a folder without a checkpoint, and no checkpoint before it"),
        (("gone.safetensors", "photo.png"), "gone.safetensors: no such file"),
        (("unfinished", "photo.png"), "unfinished: the run has no checkpoint.safetensors"),
        (("mask.safetensors", "photo.png"), "mask.safetensors: not a checkpoint, it holds: mask"),
        (("alpha.json", "photo.png"), "alpha.json: not a checkpoint"),
        (("words.txt", "photo.png"), "words.txt: not a checkpoint"),
        (("cut.safetensors", "photo.png"), "cut.safetensors: not an intact safetensors file"),
        (("run", "photo.png", "--classes", ""), "--classes: its value is empty"),
        (("run", "photo.png", "--classes", "  "), "names no class"),
        (("run", "photo.png", "--classes", ", ,"), "names no class"),
        (("run", "photo.png", "--classes", "a,,b"), "class 2 is empty"),
        (("run", "photo.png", "--classes", "a, b, "), "class 3 is empty"),
        (("run", "photo.png", "--classes", "road, a car, Road"), "'Road' is named twice"),
        (("run", "photo.png", "--vocabulary", "gone.txt"), "gone.txt: no such file"),
        (("run", "photo.png", "--vocabulary", "citscapes"), "did you mean 'cityscapes'"),
        (("run", "photo.png", "--classes", "a", "--vocabulary", "words.txt"), "give one of them"),
        (("run", "photo.png", "--names", "sloppy"), "--names sloppy: unknown"),
        (("run", "photo.png", "--stride", "8"), "--stride 8: needs a --window at least as large"),
        (("run", "photo.png", "--resume"), "no predictions to resume; leave out --resume"),
        (("run", "photo.png", "--resume", "--force"), "give one of them"),
        (("run", "photo.png", "--device", "cuda:99"), "--device cuda:99"),
        (("run", "photo.png", "--out", "photo.png"), "photo.png: a file is in the way"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    draw("photo.png")
    Path("empty").mkdir()
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:-300])
    Path("words.txt").write_text("sky\nroad\n")
    write_text("unfinished/recipe.toml", "")
    save_mask("mask.safetensors", deeplab_checkpoint().mask)  # type: ignore[arg-type]
    Path("alpha.json").write_text("{}")
    Path("cut.safetensors").write_bytes(Path("run/checkpoint.safetensors").read_bytes()[:-100])
    before = files_in(".")
    status = main.run(["predict", *arguments, *([] if "--device" in arguments else ["--device", "cpu"]), "--quiet"])
    shown = capsys.readouterr()
    assert status == 2
    assert message in shown.err and shown.err.strip().count("\n") == 0
    assert shown.out == ""
    assert files_in(".") == before


def test_json_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    draw("photo.png")
    assert main.run(["predict", "run", "photo.png", "--json", "-", "--quiet", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["file"] == "photo.png"


def test_the_table_names_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    draw("photo.png")
    assert main.run(["predict", "run", "photo.png", "--classes", "teapot", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert "teapot" in shown.out and "100.0" in shown.out and "ovstrans-out/predict" in shown.out
    assert "every pixel will be 'teapot'" in shown.err


def test_an_image_that_does_not_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    draw("photo.png")
    monkeypatch.setattr(segmenter_module, "predict_image", full)
    assert run("run", "photo.png")[0] == 2
    assert (
        "photo.png: not enough memory for this image; use windows (--window 512), or --long-side"
        in capsys.readouterr().err
    )


def test_files_with_faults_of_every_kind_do_not_end_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    """Files whose pixels are whole are read; each other one is one line, and the exit status is 2."""
    draw("in/good.png", 32, 32)
    whole = png_bytes(32, 32, bytes(32 * 32))
    Path("in/profile.png").write_bytes(png_bytes(32, 32, bytes(32 * 32), after=[(b"iCCP", b"")]))
    Path("in/text.png").write_bytes(png_bytes(32, 32, bytes(32 * 32), before=[(b"tEXt", b"a\0" + b"x" * (2 << 20))]))
    put_tiff(Path("in/floats.tif"), np.full((32, 32), 300, dtype=np.float32))
    put_tiff(Path("in/half.tif"), np.full((32, 32), 0.5, dtype=np.float16))
    put_tiff(Path("in/wide.tif"), np.full((32, 32), 300, dtype=np.int32))
    Path("in/cut.png").write_bytes(whole[: len(whole) // 2])
    Path("in/empty.jpg").write_bytes(b"")
    Path("in/text.jpg").write_bytes(b"no picture")
    Path("in/lost").symlink_to("/unmounted/disk")
    status, summary = run("run", "in", "--out", "seen", "--no-overlay")
    assert status == 2
    assert [Path(image["file"]).name for image in summary["images"]] == ["good.png", "profile.png", "text.png"]
    failed = {Path(entry["file"]).name: entry["error"] for entry in summary["failed"]}
    assert sorted(failed) == ["cut.png", "empty.jpg", "floats.tif", "half.tif", "lost", "text.jpg", "wide.tif"]
    errors = capsys.readouterr().err
    for name, error in failed.items():
        assert error.startswith(f"in/{name}: ") and "\n" not in error and error in " ".join(errors.split())
    assert "bug" not in errors


def test_classes_without_a_pixel_are_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    draw("photo.png")
    assert main.run(["predict", "run", "photo.png", "--classes", "road, [car], 路面", "--out", "seen", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("road", "[car]", "路面"))
    assert main.run(["predict", "run", "photo.png", "--vocabulary", "ade20k-150", "--out", "two", "--quiet"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "130 more classes, " in shown and "of them in no image" in shown


def test_the_classes_that_predict_wrote_are_a_vocabulary() -> None:
    """Names, synonyms and colours come back, so that the same label maps are made."""
    draw("photo.png")
    status, first = run("run", "photo.png", "--classes", "road, a red car, 路面", "--out", "look")
    assert status == 0
    status, second = run("run", "photo.png", "--vocabulary", "look/classes.json", "--out", "again")
    assert status == 0 and second["classes"] == first["classes"]
    assert Path("look/labels/photo.png").read_bytes() == Path("again/labels/photo.png").read_bytes()
    entries = [json.loads(Path(folder, "classes.json").read_text())["classes"] for folder in ("look", "again")]
    assert entries[0] == entries[1]
