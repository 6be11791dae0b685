"""Pickles and torch files of a few bytes that ask for gigabytes or for ever: refused in one line, at once."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ovstrans.clip.weights import read_weight_file
from ovstrans.errors import InputError
from ovstrans.training.loop import load_state, save_state

MOST_BYTES = 200 << 20


def refused(path: Path, words: str) -> None:
    """Reading the file takes little memory, and ends in one line with these words."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=words) as caught:
            read_weight_file(path)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def nested(levels: int, wrap: Callable[[bytes], bytes]) -> bytes:
    """A pickle of lists that hold the same list twice, `levels` deep; its size is linear in them."""
    content = b"\x80\x02]q\x00"
    for level in range(levels):
        content += wrap(b"h" + bytes([level])) + b"q" + bytes([level + 1])
    return content


PICKLES = {
    "memo": (b"\x80\x02Nr\xff\xff\xff\x1f.", "not a checkpoint"),
    "bytes": (b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b".", "truncated"),
    "bytearray": (b"\x80\x05\x96" + (1 << 33).to_bytes(8, "little") + b".", "truncated"),
    "frame": (b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b".", "truncated"),
    "number": (b"\x80\x02\x8b\xff\xff\xff\x00" + b"\x01" * 99 + b".", "a number of"),
    "digits": (b"I" + b"9" * 5000 + b"\n.", "a number of 5,000 digits"),
    "lists": (nested(60, lambda get: b"(" + get + get + b"l") + b".", "not a checkpoint"),
    "tuples as key": (b"}" + nested(60, lambda get: get + get + b"\x86") + b"Ns.", "a tuple of tuples|not a"),
    "text": (
        nested(40, lambda get: b"cdatetime\ndate\n(" + get + get + b"tR").replace(b"]q\x00", b"X\x01\0\0\0aq\x00")
        + b".",
        "a text joined",
    ),
    "array": (b"cnumpy\nndarray\n(J\x00\x00\x00\x40cnumpy\ndtype\n(X\x02\0\0\0u1tR(J\x00\x00\x00\x40ttR.", "not a"),
    "states": (b"}" + b"X\x05\0\0\0model}" * 2000 + b"s" * 2000 + b".", "in one another"),
    "classes": (b"\x80\x02" + b"".join(b"ca\nb%d\n0" % n for n in range(20_000)) + b"N.", "more than 10,000 classes"),
    "change of a class": (b"cnumpy\nndarray\n}X\x07\0\0\0resolveNsb.", "it changes a class"),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles(tmp_path: Path, kind: str) -> None:
    content, words = PICKLES[kind]
    (tmp_path / "w.pkl").write_bytes(content if content[:1] == b"\x80" else b"\x80\x02" + content)
    refused(tmp_path / "w.pkl", words)


def test_modules_that_hold_one_another(tmp_path: Path) -> None:
    """Ten modules of which each holds the next ten times are 10^10 tensors."""
    content = b"\x80\x02ca\nModule\n)\x81q\x00"
    for level in range(10):
        content += b"ca\nModule\n)\x81}("
        content += b"".join(b"X\x01\0\0\0" + bytes([97 + n]) + b"h" + bytes([level]) for n in range(10))
        content += b"ubq" + bytes([level + 1])
    (tmp_path / "w.pkl").write_bytes(content + b".")
    refused(tmp_path / "w.pkl", "without end")


def archive_with(path: Path, tensors: dict[str, Any], compression: int = zipfile.ZIP_STORED) -> None:
    """Save tensors as torch does, but compressed."""
    out = io.BytesIO()
    torch.save(tensors, out)
    with zipfile.ZipFile(out) as plain, zipfile.ZipFile(path, "w", compression) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))


def test_an_archive_that_expands(tmp_path: Path) -> None:
    archive_with(tmp_path / "w.pt", {"w": torch.zeros(12_000_000)}, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "w.pt").stat().st_size < 100_000
    refused(tmp_path / "w.pt", "an archive of .* bytes that unpacks to 48,.*save it without compression")
    archive_with(tmp_path / "w.pt", {"w": torch.randn(1000)}, zipfile.ZIP_DEFLATED)
    assert read_weight_file(tmp_path / "w.pt").state["w"].shape == (1000,)


HUGE = {
    "views": lambda: torch.ones(1).expand(1 << 20, 1 << 12),
    "coo": lambda: torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (1 << 20, 1 << 12)),
    "csr": lambda: torch.sparse_csr_tensor(
        torch.zeros(3, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0), (2, 1 << 34)
    ),
}


@pytest.mark.parametrize("kind", HUGE)
def test_tensors_larger_than_their_file(tmp_path: Path, kind: str) -> None:
    torch.save({"w": HUGE[kind]()}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "bytes with .* that would take .*; save its tensors dense")
    torch.save({"format": "ovstrans.state/1", "deep": [{"w": HUGE[kind]()}]}, tmp_path / "state.pt")
    with pytest.raises(InputError, match=r"state\.pt: not an intact state file"):
        load_state(tmp_path / "state.pt")


def test_a_state_with_all_that_states_have(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "state.pt", {"step": 3, "optimizer": optimizer.state_dict(), "half": torch.ones(2).half()})
    assert load_state(tmp_path / "state.pt")["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)


OTHER = {
    "uint32": lambda: torch.ones(2, 2, dtype=torch.uint32),
    "complex": lambda: torch.ones(2, 2, dtype=torch.complex64),
    "float8": lambda: torch.ones(2).to(torch.float8_e5m2),
    "meta": lambda: torch.ones(2, 2, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OTHER)
def test_tensors_of_unusual_kinds(tmp_path: Path, kind: str) -> None:
    torch.save({"w": OTHER[kind](), "v": torch.ones(1)}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "quantized|of the type|tensor of the class")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    value = {
        "w": torch.arange(6.0).reshape(2, 3),
        "log": [{"loss": 0.5, (1, "a"): None, 3: True, frozenset({1}): {2, 3}}, -(10**20), b"x"],
    }
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(value, protocol))
    assert torch.equal(read_weight_file(tmp_path / "w.pkl").state["w"], value["w"])
