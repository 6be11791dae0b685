"""Masks of proposals in every format that is read, and files that are something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovstrans.datasets.proposals import find_masks, read_masks
from ovstrans.datasets.run_lengths import encode_mask
from ovstrans.errors import InputError, MissingFileError

SIZE = (4, 6)
IDS = np.array([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [700, 700, 700, 2, 2, 2], [700, 700, 700, 2, 2, 2]])
MASKS = np.stack([IDS == 1, IDS == 2, IDS == 700])


def write(folder: Path, kind: str) -> Path:
    """The three masks in one of the formats."""
    path = folder / f"a.{kind.partition(' ')[0]}"
    rows = [encode_mask(mask) for mask in MASKS]
    if kind == "png 8":
        Image.fromarray(np.where(IDS == 700, 3, IDS).astype(np.uint8)).save(path)
    elif kind == "png 16":
        Image.fromarray(IDS.astype(np.uint16)).save(path)
    elif kind == "png palette":
        picture = Image.fromarray(np.where(IDS == 700, 3, IDS).astype(np.uint8), mode="P")
        picture.putpalette([0, 0, 0, 9, 9, 9, 9, 9, 9, 200, 0, 0])
        picture.save(path)
    elif kind == "png rgb":
        Image.fromarray(np.stack([IDS % 256, IDS // 256, 0 * IDS], -1).astype(np.uint8)).save(path)
    elif kind == "npz":
        np.savez_compressed(path, masks=MASKS)
    elif kind == "npz numbers":
        np.savez(path, masks=MASKS.astype(np.float32) * 7)
    elif kind == "json list":
        path.write_text(json.dumps(rows))
    elif kind == "json sam":
        path.write_text(json.dumps([{"segmentation": row, "area": 4, "predicted_iou": 0.9} for row in rows]))
    else:
        path.write_text(
            json.dumps({"image": {"file_name": "a.jpg"}, "annotations": [{"segmentation": r} for r in rows]})
        )
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "png 8",
        "png 16",
        "png palette",
        "png rgb",
        "npz",
        "npz numbers",
        "json list",
        "json sam",
        "json object",
    ],
)
def test_every_format_gives_the_same_masks(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    assert find_masks(tmp_path, "a.jpg") == path
    found = read_masks(path, SIZE)
    assert found.dtype is torch.bool and torch.equal(found, torch.from_numpy(MASKS))


def test_overlapping_and_empty_masks(tmp_path: Path) -> None:
    masks = np.stack([np.ones(SIZE, bool), np.zeros(SIZE, bool), MASKS[0]])
    np.savez(tmp_path / "a.npz", masks=masks)
    assert torch.equal(read_masks(tmp_path / "a.npz", SIZE), torch.from_numpy(masks[[0, 2]]))
    (tmp_path / "b.json").write_text("[]")
    assert read_masks(tmp_path / "b.json", SIZE).shape == (0, *SIZE)
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "c.png")
    assert read_masks(tmp_path / "c.png", SIZE).shape == (0, *SIZE)


def test_names_with_folders_dots_and_suffixes(tmp_path: Path) -> None:
    (tmp_path / "street").mkdir()
    for name in ("street/0001.png", "0002.png", "v1.0.npz", "photo.jpg.json"):
        (tmp_path / name).write_bytes(b"")
    for name, file in {
        "street/0001.jpg": "street/0001.png",
        "street/0002.jpg": "0002.png",
        "0002": "0002.png",
        "/somewhere/else/0002.jpg": "0002.png",
        "/photos/street/0001.jpg": "street/0001.png",
        "photos/street/0001.jpg": "street/0001.png",
        "v1.0": "v1.0.npz",
        "v1.0.jpg": "v1.0.npz",
        "photo.jpg": "photo.jpg.json",
    }.items():
        assert find_masks(tmp_path, name) == tmp_path / file, name
    with pytest.raises(MissingFileError, match=r"no masks for the image 9.jpg; 9.png, .npz or .json is needed"):
        find_masks(tmp_path, "9.jpg")
    with pytest.raises(MissingFileError, match="no such folder of proposals"):
        find_masks(tmp_path / "absent", "a")


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    path = write(tmp_path, "npz")
    with pytest.raises(InputError, match="its masks are 6x4, the image is 5x4"):
        read_masks(path, (4, 5))
    np.savez(tmp_path / "flat.npz", masks=np.ones(SIZE))
    np.savez(tmp_path / "other.npz", labels=MASKS)
    (tmp_path / "broken.npz").write_bytes(b"PK no zip")
    (tmp_path / "broken.json").write_text("[{")
    (tmp_path / "number.json").write_text("4")
    (tmp_path / "polygon.json").write_text('[{"segmentation": [[1, 2, 3, 4]]}]')
    (tmp_path / "short.json").write_text('[{"size": [4, 6], "counts": [3]}]')
    sizes = [encode_mask(np.ones(SIZE, bool)), encode_mask(np.ones((2, 2), bool))]
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    (tmp_path / "broken.png").write_bytes(b"no png")
    (tmp_path / "a.txt").write_text("")
    for name, message in {
        "flat.npz": "has 2 dimensions; 3 are needed",
        "other.npz": "no array `masks`",
        "broken.npz": "no array `masks`",
        "broken.json": "not valid JSON",
        "number.json": "a list of run lengths is needed",
        "polygon.json": "entry 0: not run lengths .* but a list",
        "short.json": "entry 0: run lengths of 4x6 must be numbers",
        "sizes.json": "the sizes must be equal",
        "broken.png": "broken.png",
        "a.txt": "not a file of masks; .png, .npz, .json are read",
    }.items():
        with pytest.raises(InputError, match=message):
            read_masks(tmp_path / name, SIZE)
