from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.errors import InputError
from ovstrans.masks.file import pack, parse_shapes, require_entries, unpack

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@given(shape=shapes, seed=st.integers(0, 1000), density=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_round_trip(shape: tuple[int, ...], seed: int, density: float) -> None:
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    bits = pack(kept)
    assert bits.dtype == torch.uint8 and bits.shape == (math.ceil(math.prod(shape) / 8),)
    assert torch.equal(unpack(bits, shape, "x"), kept)


def test_first_weight_is_the_most_significant_bit() -> None:
    kept = torch.tensor([[True, False, False], [False, False, False], [False, True, False], [True, True, True]])
    assert pack(kept).tolist() == [0b10000001, 0b01110000]


def test_bits_follow_indices_not_memory() -> None:
    kept = torch.rand(3, 4, 5, 6) < 0.5
    assert torch.equal(pack(kept.to(memory_format=torch.channels_last)), pack(kept))
    assert torch.equal(pack(kept.transpose(0, 1)), pack(kept.transpose(0, 1).contiguous()))


@pytest.mark.parametrize(
    ("bits", "says"),
    [
        (torch.zeros(2, dtype=torch.int8), "int8"),
        (torch.zeros(1, 2, dtype=torch.uint8), "one dimension"),
        (torch.zeros(1, dtype=torch.uint8), r"1 bytes.*needs 2"),
        (torch.zeros(3, dtype=torch.uint8), r"3 bytes.*needs 2"),
        (torch.tensor([0, 0b00010000], dtype=torch.uint8), "beyond shape"),
        (torch.tensor([0, 0b00000001], dtype=torch.uint8), "beyond shape"),
    ],
)
def test_damage_is_named(bits: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError, match=rf"^file: conv1.*{says}"):
        unpack(bits, (11,), "file: conv1")


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 3}', '{"a": [0]}', '{"a": [2.0]}', '{"a": [true]}', '{"a": [-1]}'])
def test_bad_shapes(text: str) -> None:
    with pytest.raises(InputError, match="^file"):
        parse_shapes(text, "file")


def test_shapes_keep_their_order() -> None:
    assert list(parse_shapes('{"b": [2, 3], "a": []}', "file").items()) == [("b", (2, 3)), ("a", ())]


def test_missing_entry_is_named() -> None:
    require_entries({"a": "", "b": ""}, ("a", "b"), "file")
    with pytest.raises(InputError, match=r"^file.*'c'"):
        require_entries({"a": "", "b": ""}, ("a", "c"), "file")
