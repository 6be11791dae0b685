from __future__ import annotations

import pytest

from ovstrans import environment
from ovstrans.datasets.catalog import open_dataset
from ovstrans.errors import InputError


def test_an_image_that_memory_cannot_hold_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "available_memory", lambda device: 16_000_000_000)
    dataset = open_dataset("scenes", split="train", size=20_000)
    with pytest.raises(InputError, match="scenes: drawing an image of 20000x20000 pixels takes about 40 GB"):
        dataset[0]
