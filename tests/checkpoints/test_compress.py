"""Compressed checkpoints: nothing is lost, damage is one clean error, and they come close to the entropy."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from ovstrans.checkpoints.compress import PACKED, CompressedTensors, compress_tensors, decompress
from ovstrans.checkpoints.file import CODED_FORMAT, METADATA, load_checkpoint, save_checkpoint
from ovstrans.checkpoints.precision import VALUES, convert_values
from ovstrans.errors import InputError
from ovstrans.masks.file import pack
from ovstrans.masks.mask import Mask
from tests.checkpoints.dummies import make_checkpoint
from tests.checkpoints.test_file import assert_same
from tests.masks.dummies import Framework, cut_points, tamper

BITS = "backbone.x.bitmask"


def large_checkpoint(density: float = 0.1, values: str = "fp32") -> Any:
    """A checkpoint whose masked tensor is large enough to be worth compressing."""
    framework = Framework()
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(64, 128, 3, 3, generator=generator)
    kept = torch.rand(weight.shape, generator=generator) < density
    mask = Mask({"layer1.0.conv2.weight": kept}, model="dummy", method="magnitude")
    state = {**framework.state_dict(), "backbone.layer1.0.conv2.weight": weight * kept}
    return convert_values(make_checkpoint(masked=False, state=state, mask=mask), values)[0]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint.safetensors", large_checkpoint(), compress=True)
    return tmp_path / "checkpoint.safetensors"


@given(
    count=st.integers(1, 5000),
    density=st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.5, 0.9, 0.999, 1.0]),
    seed=st.integers(0, 99),
)
def test_bits_round_trip(count: int, density: float, seed: int) -> None:
    bits = pack(torch.rand(count, generator=torch.Generator().manual_seed(seed)) < density)
    stored, entries = compress_tensors({BITS: bits}, {BITS: count})
    again = CompressedTensors(dict(stored), entries, "x")
    assert set(again) == {BITS} and torch.equal(again.pop(BITS), bits) and not again


@given(
    shape=st.lists(st.integers(0, 40), max_size=3),
    kind=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64]),
    seed=st.integers(0, 99),
)
def test_values_round_trip(shape: list[int], kind: torch.dtype, seed: int) -> None:
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(kind)
    stored, entries = compress_tensors({"a": value, "flag": torch.ones(500, dtype=torch.bool)}, {})
    again = dict(CompressedTensors(stored, entries, "x"))
    assert again["a"].dtype == kind and torch.equal(again["a"], value) and again["a"].shape == value.shape
    assert again["flag"].dtype == torch.bool and bool(again["flag"].all())


@pytest.mark.parametrize("values", list(VALUES))
def test_a_compressed_checkpoint_is_the_plain_one(values: str, tmp_path: Path) -> None:
    checkpoint = large_checkpoint(values=values)
    plain, small = tmp_path / "plain.safetensors", tmp_path / "small.safetensors"
    save_checkpoint(plain, checkpoint)
    save_checkpoint(small, checkpoint, compress=True)
    one, other = load_checkpoint(plain), load_checkpoint(small)
    for item in fields(one):
        if item.name not in ("mask", "path"):
            assert_same(getattr(one, item.name), getattr(other, item.name))
    assert one.mask is not None and other.mask is not None
    assert_same(one.mask.tensors, other.mask.tensors)
    assert small.stat().st_size < plain.stat().st_size
    save_checkpoint(tmp_path / "again.safetensors", other, compress=True)
    assert (tmp_path / "again.safetensors").read_bytes() == small.read_bytes()


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("values", ["fp32", "fp16"])
def test_it_is_within_five_per_cent_of_the_entropy(values: str, density: float) -> None:
    """Positions as independent bits of the density, values with all their bits."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 1024, generator=generator)
    kept = weight.abs() > weight.abs().flatten().kthvalue(max(1, round((1 - density) * weight.numel()))).values
    found = weight[kept].to(VALUES[values])
    stored, entries = compress_tensors({BITS: pack(kept), "v": found}, {BITS: kept.numel()})
    share = float(kept.float().mean())
    entropy = -kept.numel() * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    assert len(stored.get(BITS + PACKED, stored.get(BITS, ()))) < 1.05 * entropy
    size = sum(value.numel() * value.element_size() for value in stored.values()) + len(json.dumps(entries))
    assert size < 1.05 * (entropy + found.numel() * found.element_size())


def test_bits_in_blocks_take_a_fraction() -> None:
    """In blocks of 4x1, four rows have the same bits."""
    blocks = torch.rand(64, 512, generator=torch.Generator().manual_seed(0)) < 0.1
    sizes = []
    for kept in (blocks.repeat_interleave(4, 0), torch.rand(256, 512) < 0.1):
        stored, _ = compress_tensors({BITS: pack(kept)}, {BITS: kept.numel()})
        sizes.append(len(stored[BITS + PACKED]))
    assert sizes[0] < 0.45 * sizes[1]


def test_contract_of_the_file(saved: Path) -> None:
    with safe_open(saved, framework="np") as file:
        metadata, names = file.metadata(), set(file.keys())
        packed = file.get_tensor("backbone.layer1.0.conv2.weight.values.packed")
    assert metadata["format"] == CODED_FORMAT == "ovstrans.checkpoint/2"
    assert set(metadata) == {*METADATA, "coding", "content_sha256"}
    entries = json.loads(metadata["coding"])["packed"]
    assert {"backbone.layer1.0.conv2.weight.values", "backbone.layer1.0.conv2.weight.bitmask"} == set(entries)
    assert {f"{name}.packed" for name in entries} <= names and "head.weight" in names
    entry = entries["backbone.layer1.0.conv2.weight.values"]
    assert entry["dtype"] == "float32" and len(entry["planes"]) == 4 and sum(entry["planes"]) == len(packed)
    assert entries["backbone.layer1.0.conv2.weight.bitmask"]["gaps"] == "kept"


@pytest.mark.parametrize("number", range(9))
def test_truncated(saved: Path, number: int) -> None:
    saved.write_bytes(saved.read_bytes()[: cut_points(saved)[number]])
    with pytest.raises(InputError, match=r"checkpoint\.safetensors"):
        load_checkpoint(saved)


def test_changed_bytes_load_or_are_refused_cleanly(saved: Path) -> None:
    content, draw = saved.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
        place = draw.randrange(len(content))
        saved.write_bytes(content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :])
        try:
            load_checkpoint(saved)
        except InputError as error:
            assert str(error).startswith(str(saved)) and "\n" not in str(error)
            refused += 1
    assert refused


def packed(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def run(coding: dict[str, Any]) -> dict[str, Any]:
        change(coding["packed"]["backbone.layer1.0.conv2.weight.values"])
        return coding

    return run


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no list": (lambda coding: [], "a JSON object is needed"),
    "of the future": (lambda coding: {**coding, "int4": {}}, "'int4' that is not known; update ovstrans"),
    "no entries": (lambda coding: {**coding, "packed": {}}, "values is missing"),
    "unknown tensor": (lambda coding: {"packed": {**coding["packed"], "b": {}}}, "b.packed is missing"),
    "no dtype": (packed(lambda entry: entry.pop("dtype")), "describes no tensor"),
    "unknown dtype": (packed(lambda entry: entry.update(dtype="float8")), "describes no tensor"),
    "dtype of another kind": (packed(lambda entry: entry.update(dtype=["float32"])), "describes no tensor"),
    "other dtype": (packed(lambda entry: entry.update(dtype="float16")), "describes no tensor"),
    "another entry": (packed(lambda entry: entry.update(more=1)), "describes no tensor"),
    "negative": (packed(lambda entry: entry.update(shape=[-1])), "describes no tensor"),
    "no number": (packed(lambda entry: entry.update(shape=[1.5])), "describes no tensor"),
    "true": (packed(lambda entry: entry.update(shape=[True])), "describes no tensor"),
    "huge": (packed(lambda entry: entry.update(shape=[10**15])), "cannot hold shape"),
    "huger": (packed(lambda entry: entry.update(shape=[10**30, 10**30])), "cannot hold shape"),
    "too short": (packed(lambda entry: entry["shape"].__setitem__(0, entry["shape"][0] - 1)), "packed"),
    "too long": (packed(lambda entry: entry["shape"].__setitem__(0, entry["shape"][0] + 1)), "packed"),
    "planes swapped": (packed(lambda entry: entry["planes"].reverse()), "packed"),
    "planes too large": (packed(lambda entry: entry["planes"].__setitem__(3, 10**12)), "bytes are needed|of 1"),
    "gaps of floats": (packed(lambda entry: entry.update(gaps="kept")), "describes no tensor"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_coding_is_refused_before_anything_is_allocated(saved: Path, case: str) -> None:
    change, says = BAD[case]
    with safe_open(saved, framework="np") as file:
        coding = json.loads(file.metadata()["coding"])
    bad = tamper(saved, saved.with_name("bad.safetensors"), metadata={"coding": json.dumps(change(coding))})
    with pytest.raises(InputError, match=says) as caught:
        load_checkpoint(bad)
    assert str(caught.value).startswith(str(bad)) and "\n" not in str(caught.value)


def test_a_file_without_coding_is_refused(saved: Path) -> None:
    bad = tamper(saved, saved.with_name("bad.safetensors"), metadata={"coding": None})
    with pytest.raises(InputError, match="no 'coding'"):
        load_checkpoint(bad)


def test_gaps_without_an_end_are_refused() -> None:
    gaps = torch.full((300,), 255, dtype=torch.uint8)
    entry = {"dtype": "uint8", "shape": [300], "planes": [300], "gaps": "kept"}
    with pytest.raises(InputError, match="no end"):
        decompress(gaps, entry, "x")
    gaps[-1] = 0
    bits = decompress(gaps, entry, "x")
    assert len(bits) == -(-299 * 255 // 8) and not bits.any()


def test_a_stream_that_expands_beyond_its_plane_is_stopped() -> None:
    import zlib

    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(10**8), 9)), dtype=torch.uint8)
    entry = {"dtype": "uint8", "shape": [len(bomb) * 100], "planes": [len(bomb)]}
    with pytest.raises(InputError, match="holds more than"):
        decompress(bomb, entry, "x")


def test_rows_of_a_documented_reader_are_right() -> None:
    """Gaps by hand: 3 skipped, kept, kept, 255 + 10 skipped, kept, 2 to the end."""
    bits = np.zeros(273, bool)
    bits[[3, 4, 270]] = True
    gaps = np.array([3, 0, 255, 10, 2], np.uint8)
    entry = {"dtype": "uint8", "shape": [5], "planes": [5], "gaps": "kept"}
    found = decompress(torch.from_numpy(gaps), entry, "x")
    assert np.array_equal(np.unpackbits(found.numpy(), count=273).astype(bool), bits)
