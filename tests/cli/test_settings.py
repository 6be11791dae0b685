"""`--set` of a trained model, in `predict` and `bench`: options that matter to inference alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovstrans.checkpoints.file import Checkpoint, save_checkpoint
from ovstrans.cli import main
from tests.interop.test_export_deop import checkpoint
from tests.segmenter.case import draw

__all__ = ["checkpoint"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
    """A trained DeOP, a photograph and its masks: the left part and the right."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("deop.safetensors", checkpoint)
    draw("photo.jpg")
    masks = np.zeros((2, 64, 80), dtype=bool)
    masks[0, :, :30], masks[1, :, 30:] = True, True
    Path("masks").mkdir()
    np.savez("masks/photo.npz", masks=masks)


def predict(*arguments: str) -> int:
    return main.run(
        ["predict", "deop.safetensors", "photo.jpg", "--out", "seen", "--quiet", "--device", "cpu", *arguments]
    )


def test_predict_names_the_masks_of_a_folder() -> None:
    assert predict("--set", "model.proposals=folder:masks") == 0
    with Image.open("seen/labels/photo.png") as picture:
        labels = np.asarray(picture)
    assert len(np.unique(labels[:, :30])) == 1 and len(np.unique(labels[:, 30:])) == 1


def test_predict_says_which_options_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("--set", "model.queries=3") == 2
    error = capsys.readouterr().err
    assert "model.proposals, model.two_stream can be changed in a trained deop" in error
    assert predict("--set", "model.two_stream=maybe") == 2
    Path("masks/photo.npz").unlink()
    assert predict("--set", "model.proposals=folder:masks") == 2
    assert "no masks for the image photo.jpg" in capsys.readouterr().err


def test_bench_counts_a_pass_for_every_proposal() -> None:
    common = ["bench", "deop.safetensors", "--data", "none", "--image-size", "64x96", "--quiet", "--device", "cpu"]
    assert main.run([*common, "--json", "one.json"]) == 0
    assert main.run([*common, "--set", "model.two_stream=true", "--json", "two.json"]) == 0
    one, two = (json.loads(Path(name).read_text()) for name in ("one.json", "two.json"))
    one, two = (each["reports"][0] if "reports" in each else each for each in (one, two))
    trunk = [each["flops"]["components"]["trunk"]["dense"] for each in (one, two)]
    assert trunk[1] > 6 * trunk[0]
    assert two["target"]["options"]["two_stream"] is True
