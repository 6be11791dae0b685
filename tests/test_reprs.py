"""The text of every public object is short and says what it is; `dir` shows the interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ovstrans
from ovstrans.clip.load import random_clip
from ovstrans.spectrum.plan import FreezePlan
from ovstrans.vocabulary.catalog import list_published_vocabularies, load_published_vocabulary

SMALL = {"data.size": 64, "data.images": 4, "augment.crop": 64, "training.batch": 2, "model.width": 8}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("objects")
    clip = random_clip(seed=3)
    pruned = ovstrans.prune(clip, method="magnitude", sparsity=0.5, steps=0, out=folder / "m.safetensors", plot=False)
    analysis = ovstrans.analyze(clip)
    run = ovstrans.finetune(mask=pruned.mask, settings=SMALL, steps=1, out=folder / "run", device="cpu")
    segmenter = ovstrans.Segmenter.load(run)
    dataset = ovstrans.open_dataset("scenes", split="val")
    return {
        "Clip": clip,
        "PruneResult": pruned,
        "Mask": pruned.mask,
        "Analysis": analysis,
        "LayerAlpha": analysis.layers[0],
        "FreezePlan": analysis.plan(),
        "Run": run,
        "Checkpoint": run.load(),
        "Report": ovstrans.bench(run, data=["none"], image_size="64x64"),
        "Segmenter": segmenter,
        "Segmentation": segmenter.segment(np.zeros((64, 64, 3), np.uint8), "road, a car"),
        "Scenes": dataset,
        "Sample": dataset[0],
        "Vocabulary": dataset.vocabulary,
        "ExportResult": ovstrans.export(pruned.mask.path or folder / "m.safetensors"),
        "FileDescription": ovstrans.inspect(run),
    }


def test_the_text_of_an_object_is_short(objects: dict[str, Any]) -> None:
    for name, value in objects.items():
        text = repr(value)
        assert type(value).__name__ == name
        assert len(text) < 2000 and text.count("\n") < 30 and "tensor(" not in text and " object at 0x" not in text, (
            name
        )
    assert repr(objects["Scenes"]).startswith("Scenes(scenes:val, ")
    assert repr(objects["Sample"]).startswith("Sample(")


def test_the_text_of_every_vocabulary_is_a_line() -> None:
    for name in list_published_vocabularies():
        text = repr(load_published_vocabulary(name))
        assert text.startswith(f"Vocabulary({name}: ") and len(text) < 200 and "\n" not in text


def test_equal_masks_are_equal(objects: dict[str, Any], tmp_path: Path) -> None:
    from ovstrans.masks.file import save_mask

    mask = objects["Mask"]
    save_mask(tmp_path / "m.safetensors", mask)
    again = ovstrans.load_mask(tmp_path / "m.safetensors")
    assert again == mask and hash(again) == hash(mask) and len({again, mask}) == 1
    next(iter(again.tensors.values())).view(-1)[0].logical_not_()
    assert again != mask and mask != "a mask"


def test_a_run_folder_is_a_checkpoint(objects: dict[str, Any]) -> None:
    run = objects["Run"]
    assert ovstrans.load_checkpoint(run.path).clip == ovstrans.load_checkpoint(str(run.path)).clip
    assert isinstance(objects["FreezePlan"], FreezePlan)


def test_dir_shows_the_interface() -> None:
    assert dir(ovstrans) == sorted(ovstrans.__all__)
