from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.checkpoints.stored import to_dense, to_sparse
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.mask import Mask

KEY = "backbone.layer1.0.conv1.weight"


def sparse_pair(
    shape: list[int], density: float, seed: int, dtype: torch.dtype
) -> tuple[Mask, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < density
    weight = torch.randn(shape, generator=generator).to(dtype).masked_fill(~kept, 0)
    return Mask({"layer1.0.conv1.weight": kept}, model="m"), {KEY: weight, "head.bias": torch.ones(2)}


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_round_trip(shape: list[int], density: float, seed: int, dtype: torch.dtype) -> None:
    mask, state = sparse_pair(shape, density, seed, dtype)
    sparse = to_sparse(state, mask, where="x")
    assert set(sparse) == {f"{KEY}.values", f"{KEY}.bitmask", "head.bias"}
    assert sparse[f"{KEY}.values"].shape == (mask.kept,)
    kept = to_dense(sparse, {KEY: tuple(shape)}, where="x")
    assert torch.equal(kept["layer1.0.conv1.weight"], mask.tensors["layer1.0.conv1.weight"])
    assert set(sparse) == set(state)
    assert sparse[KEY].dtype == dtype and torch.equal(sparse[KEY], state[KEY])
    assert not torch.signbit(sparse[KEY][sparse[KEY] == 0].float()).any()


def test_values_are_in_c_order_whatever_the_layout() -> None:
    mask, state = sparse_pair([3, 4, 2, 2], 0.5, 0, torch.float32)
    plain = to_sparse(state, mask, where="x")[f"{KEY}.values"]
    last = {**state, KEY: state[KEY].to(memory_format=torch.channels_last)}
    assert torch.equal(to_sparse(last, mask, where="x")[f"{KEY}.values"], plain)
    assert plain.tolist() == [value for value in state[KEY].reshape(-1).tolist() if value != 0]


def test_kept_zeros_stay_kept() -> None:
    mask, state = sparse_pair([4, 4], 1.0, 0, torch.float32)
    state[KEY][0] = 0
    assert len(to_sparse(state, mask, where="x")[f"{KEY}.values"]) == 16


@pytest.mark.parametrize("value", [1e-30, -1.0, float("nan")])
def test_masked_weight_that_is_not_zero_is_refused(value: float) -> None:
    mask, state = sparse_pair([4, 4], 0.5, 0, torch.float32)
    state[KEY][~mask.tensors["layer1.0.conv1.weight"]] = value
    count = 16 - mask.kept
    with pytest.raises(MismatchError, match=f"x: {count} masked weights of {KEY} are not zero"):
        to_sparse(state, mask, where="x")


def test_state_that_does_not_fit() -> None:
    mask, state = sparse_pair([4, 4], 0.5, 0, torch.float32)
    with pytest.raises(MismatchError, match=f"no {KEY}"):
        to_sparse({"head.bias": torch.ones(2)}, mask, where="x")
    with pytest.raises(MismatchError, match=r"shape \[4, 2\]"):
        to_sparse({KEY: state[KEY][:, :2]}, mask, where="x")
    with pytest.raises(MismatchError, match="bitmask"):
        to_sparse({**state, f"{KEY}.bitmask": torch.ones(1)}, mask, where="x")


def test_parts_that_do_not_agree() -> None:
    mask, state = sparse_pair([4, 4], 0.5, 0, torch.float32)
    good = to_sparse(state, mask, where="x")
    values, bitmask = f"{KEY}.values", f"{KEY}.bitmask"
    shapes = {KEY: (4, 4)}
    cases = [
        ({key: value for key, value in good.items() if key != values}, shapes, f"{values} is missing"),
        ({key: value for key, value in good.items() if key != bitmask}, shapes, f"{bitmask} is missing"),
        ({**good, values: good[values][1:]}, shapes, "bitmask keeps"),
        ({**good, values: good[values][None]}, shapes, "bitmask keeps"),
        ({**good, bitmask: good[bitmask].float()}, shapes, "uint8"),
        ({**good, KEY: state[KEY]}, shapes, "cannot be"),
        (good, {}, "no entry in shapes"),
        (good, {KEY: (4, 5)}, "needs 3"),
        ({"head.values": torch.ones(1), "head.bitmask": torch.ones(1)}, {"head": (1,)}, "cannot be"),
    ]
    for tensors, named, says in cases:
        with pytest.raises(InputError, match=f"^x: .*{says}"):
            to_dense(dict(tensors), named, where="x")
