"""The readers of files, each with valid files to begin with."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import ovstrans
from ovstrans.checkpoints.file import load_checkpoint, save_checkpoint
from ovstrans.clip.weights import read_state_dict
from ovstrans.datasets.description import read_description
from ovstrans.datasets.images import read_colors, read_image, read_label
from ovstrans.datasets.proposals import read_masks
from ovstrans.datasets.published.panoptic import read_annotations
from ovstrans.frameworks.registry import restore
from ovstrans.masks.file import load_mask, save_weights
from ovstrans.recipes.load import load_recipe, recipe_text
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.reports.lock import load_lock
from ovstrans.reports.report import load_reports
from ovstrans.segmenter.coco import read_instances, read_panoptic
from ovstrans.spectrum.file import load_plan
from ovstrans.training.loop import load_state, save_state
from ovstrans.training.run_folder import RunFolder
from ovstrans.vocabulary.files import read_vocabulary
from tests.segmenter.case import deeplab_checkpoint

DATA = Path(__file__).parents[2] / "data"
SIZE = (12, 16)


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
        read: Reads a file.
        seeds: Makes valid files, by suffix.
    """

    read: Callable[[Path], Any]
    seeds: Callable[[], list[tuple[str, bytes]]]


def _saved(save: Callable[[Any], None]) -> bytes:
    out = io.BytesIO()
    save(out)
    return out.getvalue()


def _weights() -> list[tuple[str, bytes]]:
    state: dict[str, Any] = {"conv1.weight": torch.randn(4, 3, 2, 2), "v": torch.ones(2).half(), "n": torch.tensor(3)}
    more = {"state_dict": state, "optimizer": {"state": {0: torch.ones(2)}, "betas": (0.9, 0.99)}, "epoch": 1}
    sparse = {"w": torch.eye(4).to_sparse(), "x": torch.ones(1).expand(3, 2)}
    safe = _file(lambda path: ovstrans.files.write_tensors(path, state, {"a": "b"}))
    return [
        (".pt", _saved(lambda out: torch.save(more, out))),
        (".pt", _saved(lambda out: torch.save(sparse, out))),
        (".pt", _saved(lambda out: torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), out))),
        (".pt", _saved(lambda out: torch.save(more, out, _use_new_zipfile_serialization=False))),
        (".pkl", pickle.dumps({"model": {"w": np.ones((2, 3), np.float32), "s": np.float64(1)}}, 2)),
        (".pkl", pickle.dumps({"model": {"w": np.ones((2, 3), np.float32)}, "set": {1, 2}}, 4)),
        (".safetensors", safe),
    ]


def _file(save: Callable[[Path], Any]) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.safetensors")
        save(path)
        return path.read_bytes()


def _images() -> list[tuple[str, bytes]]:
    draw = np.random.default_rng(0)
    color, gray = draw.integers(0, 256, (*SIZE, 3), np.uint8), draw.integers(0, 9, SIZE, np.uint8)
    wide = Image.fromarray(draw.integers(0, 60000, SIZE).astype(np.uint16))
    found = []
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP"), (".bmp", "BMP"), (".tif", "TIFF")):
        found += [(suffix, _saved(lambda out, k=kind: Image.fromarray(color).save(out, k)))]
        found += [(suffix, _saved(lambda out, k=kind: Image.fromarray(gray).save(out, k)))]
    return [
        *found,
        (".png", _saved(lambda out: wide.save(out, "PNG"))),
        (".ppm", _saved(lambda out: wide.save(out, "PPM"))),
    ]


def _proposals() -> list[tuple[str, bytes]]:
    masks = np.zeros((2, *SIZE), bool)
    masks[:, 2:5] = True
    lengths = [{"segmentation": {"size": list(SIZE), "counts": [5, 3, SIZE[0] * SIZE[1] - 8]}, "score": 0.5}]
    text = [{"size": list(SIZE), "counts": "52g1"}]
    return [
        (".npz", _saved(lambda out: np.savez_compressed(out, masks=masks))),
        (".npz", _saved(lambda out: np.savez(out, masks=masks.astype(np.float32)))),
        (".json", json.dumps(lengths).encode()),
        (".json", json.dumps({"annotations": text}).encode()),
    ]


def _vocabularies() -> list[tuple[str, bytes]]:
    color = [[70, 130, 180], [1, 2, 3]]
    table = {
        "name": "n",
        "classes": [["a"], ["b", "c"]],
        "novel": [1],
        "things": [0],
        "templates": ["{}"],
        "colors": color,
    }
    records = [
        {"id": 0, "name": "sky", "synonyms": ["air"], "color": [1, 2, 3], "isthing": 0},
        {"id": 7, "name": "car"},
    ]
    return [
        (".toml", b'classes = ["sky", "car, automobile"]\nnovel = ["car"]\ncolors = [[1, 2, 3], [4, 5, 6]]\n'),
        (".txt", b"sky\ncar, automobile\n# no\n"),
        (".txt", b"1:sky,air\n2:invalid_class_id\n3:car\n"),
        (".csv", b"id,name,r,g,b\n0,sky,1,2,3\n1,car,4,5,6\n"),
        (".tsv", b"0\tsky\n1\tcar\n"),
        (".json", json.dumps(table).encode()),
        (".json", json.dumps({"categories": records}).encode()),
        (".json", json.dumps({"0": "sky", "1": "car"}).encode()),
    ]


def _runs() -> list[tuple[str, bytes]]:
    lines = [{"step": n, "loss": 1.5 - n / 10, "lr": 0.1} for n in range(3)]
    return [(".log", "\n".join(map(json.dumps, lines)).encode())]


def _read_log(path: Path) -> Any:
    folder = path.with_name("run")
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / "log.jsonl")
    return RunFolder(folder).entries()


def _data(*names: str) -> list[tuple[str, bytes]]:
    return [(Path(name).suffix, (DATA / name).read_bytes()) for name in names]


def _restored(path: Path) -> Any:
    return restore(load_checkpoint(path))


def _checkpoints() -> list[tuple[str, bytes]]:
    return [(".safetensors", _file(lambda path: save_checkpoint(path, deeplab_checkpoint())))]


def _states() -> list[tuple[str, bytes]]:
    state = {"step": 3, "model": {"w": torch.ones(3, 2)}, "optimizer": {"param_groups": [{"betas": (0.9, 0.99)}]}}
    return [(".pt", _file(lambda path: save_state(path, state)))]


def _pruned() -> list[tuple[str, bytes]]:
    mask = load_mask(DATA / "mask.safetensors")
    weights = {key: kept.float() for key, kept in mask.tensors.items()}
    return [(".safetensors", _file(lambda path: save_weights(path, weights, mask, "m.safetensors")))]


_PANOPTIC = {
    "annotations": [
        {"file_name": "a.png", "image_id": 1, "segments_info": [{"id": 3, "category_id": 0, "iscrowd": 0, "area": 4}]}
    ],
    "categories": [{"id": 0, "name": "sky", "isthing": 0}],
}
_INSTANCES = [{"image_id": 1, "category_id": 0, "score": 0.5, "segmentation": {"size": [2, 2], "counts": [1, 3]}}]
_LOCK = {
    "schema": "ovstrans.costs/1",
    "targets": {
        "RN50 --image-size 8x8": {
            "target": "RN50",
            "image_size": [8, 8],
            "batch": 1,
            "params": {"trunk": {"total": 1, "nonzero": 1, "trainable": 1}},
            "macs": {"trunk": {"dense": 3, "effective": 2}},
            "other": {},
        }
    },
}
_DESCRIPTION = (
    b'classes = ["sky", "car"]\nimages = "{split}"\nlabels = "l"\nignore = [11]\nvalues = { 0 = "sky", 3 = "car" }\n'
)


def _json(value: Any) -> Callable[[], list[tuple[str, bytes]]]:
    return lambda: [(".json", json.dumps(value).encode())]


READERS: dict[str, Reader] = {
    "weights": Reader(read_state_dict, _weights),
    "mask": Reader(load_mask, lambda: _data("mask.safetensors")),
    "checkpoint": Reader(load_checkpoint, lambda: _data("checkpoint.safetensors")),
    "restore": Reader(_restored, _checkpoints),
    "pruned": Reader(ovstrans.inspect, _pruned),
    "state": Reader(load_state, _states),
    "alpha": Reader(load_plan, lambda: _data("alpha.json")),
    "report": Reader(load_reports, lambda: _data("report.json")),
    "inspect": Reader(
        ovstrans.inspect, lambda: [*_data("report.json", "alpha.json", "mask.safetensors", "checkpoint.safetensors")]
    ),
    "lock": Reader(load_lock, _json(_LOCK)),
    "recipe": Reader(
        lambda path: FinetuneRecipe.parse(load_recipe(str(path)), "r"),
        lambda: [(".toml", recipe_text("deeplabv3-mini").encode())],
    ),
    "vocabulary": Reader(read_vocabulary, _vocabularies),
    "dataset": Reader(read_description, lambda: [(".toml", _DESCRIPTION)]),
    "panoptic": Reader(lambda path: read_annotations(path, {0: 0}), _json(_PANOPTIC)),
    "coco panoptic": Reader(read_panoptic, _json(_PANOPTIC)),
    "coco instances": Reader(read_instances, _json(_INSTANCES)),
    "proposals": Reader(lambda path: read_masks(path, SIZE), _proposals),
    "log": Reader(_read_log, _runs),
    "image": Reader(read_image, _images),
    "label": Reader(read_label, _images),
    "colors": Reader(read_colors, _images),
}
