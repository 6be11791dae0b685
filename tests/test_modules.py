"""Eval mode for a block, and back."""

from __future__ import annotations

import pytest
from torch import nn

from ovstrans.environment import eval_mode


def test_every_submodule_gets_its_own_mode_back() -> None:
    module = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2)))
    module.train()
    module[1].training = False
    before = [inner.training for inner in module.modules()]
    assert len(set(before)) == 2
    with pytest.raises(RuntimeError), eval_mode(module):
        assert not any(inner.training for inner in module.modules())
        raise RuntimeError
    assert [inner.training for inner in module.modules()] == before
