"""Options of a checkpoint that ask for more memory than its tensors have are refused before it is taken."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from ovstrans import files
from ovstrans.checkpoints.file import load_checkpoint, save_checkpoint
from ovstrans.errors import InputError
from ovstrans.frameworks.options import resolve_options
from ovstrans.frameworks.registry import restore
from tests.segmenter.case import deeplab_checkpoint


def changed(path: Path, entry: str, **values: Any) -> Path:
    save_checkpoint(path, deeplab_checkpoint())
    tensors, metadata = files.read_tensors(path)
    metadata[entry] = json.dumps({**json.loads(metadata[entry]), **values})
    files.write_tensors(path, tensors, metadata)
    return path


@pytest.mark.parametrize("width", [1 << 18, 1_000_000, 10**25, 512])
def test_a_width_that_the_tensors_do_not_have(tmp_path: Path, width: int) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match="width|shape|do not belong together"):
        restore(load_checkpoint(changed(tmp_path / "c.safetensors", "options", width=width)))
    assert time.monotonic() - start < 10


def test_numbers_and_their_bounds() -> None:
    defaults = {"width": 8, "encoder_layers": 2, "weight": 1.0, "blocks": [1]}
    for options in ({"weight": math.inf}, {"weight": math.nan}, {"weight": 10**400}, {"encoder_layers": 10_000}):
        with pytest.raises(InputError, match="framework x: option .* = "):
            resolve_options("framework x", defaults, options)
    with pytest.raises(InputError, match="option blocks has 5,000 entries"):
        resolve_options("framework x", defaults, {"blocks": [0] * 5000})


@pytest.mark.parametrize(
    "values", [{"mean": "abc"}, {"std": [0, 0, 0]}, {"std": [1, 1]}, {"model": 5}, {"pretrained": ["x"]}]
)
def test_facts_of_the_clip(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"c\.safetensors: clip: {next(iter(values))} is "):
        load_checkpoint(changed(tmp_path / "c.safetensors", "clip", **values))
