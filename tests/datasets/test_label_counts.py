"""What makes scores on a described folder say little: one class, classes without a pixel, values ignored by default."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovstrans.cli import main
from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.check import check_dataset
from ovstrans.datasets.label_counts import count_labels, count_values, warn_of_labels
from ovstrans.errors import InputError


def put_masks(top: Path, *values: int, images: int = 4, classes: str = '"background", "polyp"', keys: str = "") -> Path:
    """Masks with a quarter of the pixels of each value after the first, in two splits."""
    mask = np.full((8, 8), values[0], dtype=np.uint8 if max(values) < 256 else np.uint16)
    for place, value in enumerate(values[1:]):
        mask[4 * (place // 2) :, 4 * (place % 2) : 4 * (place % 2) + 4][:4] = value
    for split in ("train", "val"):
        for folder in (split, f"{split}annot"):
            (top / folder).mkdir(parents=True, exist_ok=True)
        for number in range(images):
            Image.new("RGB", (8, 8), (90, 120, 150)).save(top / f"{split}/{number}.png")
            Image.fromarray(mask).save(top / f"{split}annot/{number}.png")
    text = f'classes = [{classes}]\nimages = "{{split}}"\nlabels = "{{split}}annot"\n{keys}\n'
    (top / "dataset.toml").write_text(text)
    return top


def warnings(top: Path) -> list[str]:
    result = check_dataset(f"folder:{top}")
    assert result.faults == ()
    return list(result.warnings)


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    top = put_masks(tmp_path / "polyps", 0, 255)
    assert warnings(top) == [
        "polyps: class polyp has no pixel anywhere in 8 label maps, one class alone is left to score, and value 255 "
        'covers 25 % and is ignored; if that stands for a class, write values = { 0 = "background", 255 = "polyp" } in '
        f"{top}/dataset.toml, or ignore = [255] if it does not"
    ]
    advice = warnings(top)[0].partition("write ")[2].partition(" in /")[0]
    put_masks(top, 0, 255, keys=advice)
    assert warnings(top) == []
    label = open_dataset(f"folder:{top}", split="val")[0].label
    assert label is not None and sorted(set(label.flatten().tolist())) == [0, 1]


def test_masks_of_0_1_and_255(tmp_path: Path) -> None:
    """Both classes occur; that 255 is a border, as in PASCAL VOC, can be confirmed."""
    top = put_masks(tmp_path / "polyps", 0, 1, 255)
    (message,) = warnings(top)
    assert message.startswith(
        "polyps: value 255 covers 25 % and is ignored; if that stands for a class, write values = "
    )
    assert '{ 0 = "background", 1 = "polyp", 255 = "polyp" }' in message
    put_masks(top, 0, 1, 255, keys="ignore = [255]")
    assert warnings(top) == []
    put_masks(top, 0, 1, 255, keys='values = { 0 = "background", 1 = "polyp", 255 = "polyp" }')
    assert warnings(top) == []
    counts = count_values(np.array([[0, 1], [255, 255]], dtype=np.uint8))
    assert counts.pixels == {0: 1, 1: 1, 255: 2}


def test_masks_of_0_and_128(tmp_path: Path) -> None:
    top = put_masks(tmp_path / "polyps", 0, 128)
    result = check_dataset(f"folder:{top}")
    assert len(result.faults) == 8 and "label value 128 is none of the 2 classes (0 to 1)" in result.faults[0]
    assert 'say there what each value means, values = { 128 = "polyp", ... }' in result.faults[0]
    put_masks(top, 0, 128, keys='values = { 0 = "background", 128 = "polyp" }')
    assert warnings(top) == []
    put_masks(top, 0, 127, keys='values = { 0 = "background", 128 = "polyp" }')
    assert "label value 127 is none of the 2 classes (0, 128)" in check_dataset(f"folder:{top}").faults[0]


def test_an_explicit_ignore_is_named_only_if_a_class_is_missing(tmp_path: Path) -> None:
    (message,) = warnings(put_masks(tmp_path / "polyps", 0, 255, keys="ignore = [255]"))
    assert "class polyp has no pixel anywhere" in message and "value 255 covers 25 % and is ignored" in message
    assert message.endswith("dataset.toml")


def test_masks_of_16_bits_and_two_ignored_values(tmp_path: Path) -> None:
    (message,) = warnings(put_masks(tmp_path / "wide", 0, 65535, 255))
    assert "and values 255 and 65535 cover 50 % and are ignored; if that stands for a class" in message


def test_classes_without_a_pixel(tmp_path: Path) -> None:
    (message,) = warnings(put_masks(tmp_path / "street", 0, 2, classes='"a", "b", "c"'))
    assert message == "street: class b has no pixel anywhere in 8 label maps"
    (message,) = warnings(put_masks(tmp_path / "street", 1, 2, classes='"a", "b", "c", "d", "e", "f"'))
    assert message == "street: classes a, d, e and 1 more have no pixel anywhere in 8 label maps"


def test_a_class_in_one_split_only_is_somewhere(tmp_path: Path) -> None:
    top = put_masks(tmp_path / "street", 0, 1)
    for number in range(4):
        Image.new("L", (8, 8), 0).save(top / f"valannot/{number}.png")
    assert warnings(top) == []
    (message,) = check_dataset(f"folder:{top}:val").warnings
    assert "class polyp has no pixel anywhere in 4 label maps" in message


def test_one_class_always_scores_100(tmp_path: Path) -> None:
    (message,) = warnings(put_masks(tmp_path / "polyps", 0, 255, classes='"polyp"'))
    assert "its only class is polyp" in message and "all scores are 100 %" in message


def test_the_command_shows_and_writes_the_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = put_masks(tmp_path / "polyps", 0, 255)
    assert main.run(["data", "check", f"folder:{top}", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    (message,) = json.loads(out)["warnings"]
    assert message in " ".join(err.split()) and "warning: polyps: class polyp has no pixel anywhere" in " ".join(
        err.split()
    )


def test_what_training_and_evaluation_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    top = put_masks(tmp_path / "polyps", 0, 255)
    warn_of_labels(open_dataset(f"folder:{top}", split="train"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("polyps:train: class polyp has no pixel anywhere in 4 label maps")
    caplog.clear()
    warn_of_labels(open_dataset("scenes:val", split="val", size=32))
    assert not caplog.records


def test_counting_ends_when_every_class_is_seen_and_passes_over_faults(tmp_path: Path) -> None:
    top = put_masks(tmp_path / "street", 0, 1, images=250)
    dataset = open_dataset(f"folder:{top}", split="val")
    assert count_labels(dataset, range(250)).maps == 100  # type: ignore[arg-type]
    assert count_labels(dataset, range(7)).maps == 7  # type: ignore[arg-type]
    for number in range(0, 250, 2):
        Image.new("L", (8, 8), 0).save(top / f"valannot/{number}.png")
        (top / f"valannot/{number + 1}.png").write_bytes(b"")
    counts = count_labels(dataset, range(250))  # type: ignore[arg-type]
    assert counts.maps == 125 and counts.pixels == {0: 125 * 64}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("values = 3", "values is 3; write values = { 0 ="),
        ("values = {}", "values is {}; write values"),
        ('values = { a = "polyp" }', "values: 'a' is no label value (0 to 65535)"),
        ('values = { -1 = "polyp" }', "values: '-1' is no label value"),
        ('values = { 65536 = "polyp" }', "values: '65536' is no label value"),
        ('values = { 1 = "polyp", 01 = "polyp" }', "values: 1 is written twice"),
        ("values = { 0 = 1 }", "values: 0 is 1; the name of a class is needed"),
        ('values = { 0.5 = "polyp" }', "values: 0 is {'5': 'polyp'}; the name of a class is needed"),
        ('values = { 0 = "polip" }', "values: 0 is 'polip', which is none of the classes; did you mean 'polyp'?"),
        ('values = { 0 = "xyz" }', "values: 0 is 'xyz', which is none of the classes; known are background, polyp"),
        ('values = { 0 = "polyp" }\noffset = 1', "values says what each label value means, leave out offset"),
        ('values = { 0 = "polyp", 7 = "background" }\nignore = [7]', "label value 7 is in values and in ignore"),
    ],
)
def test_a_wrong_table_of_values(tmp_path: Path, keys: str, words: str) -> None:
    top = put_masks(tmp_path / "polyps", 0, 255, keys=keys)
    with pytest.raises(InputError) as caught:
        open_dataset(f"folder:{top}", split="val")
    assert str(caught.value).startswith(f"{top}/dataset.toml: ") and words in str(caught.value)


def test_values_name_classes_by_any_of_their_names(tmp_path: Path) -> None:
    classes = '"background, other", "polyp, lesion", "tool, other"'
    keys = '[values]\n0 = "background"\n1 = "lesion"\n255 = "polyp, lesion"\n7 = "tool"'
    top = put_masks(tmp_path / "polyps", 0, 1, 255, 7, classes=classes, keys=keys)
    label = open_dataset(f"folder:{top}", split="val")[0].label
    assert label is not None
    assert [label[0, 0], label[0, 7], label[7, 0], label[7, 7]] == [1, 1, 2, 0]
    top = put_masks(tmp_path / "polyps", 0, classes=classes, keys='values = { 0 = "other" }')
    with pytest.raises(InputError, match="'other', which is none of the classes"):
        open_dataset(f"folder:{top}", split="val")
