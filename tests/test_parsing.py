"""JSON, TOML and files of any origin: within bounds, or refused in one line at once."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ovstrans
from ovstrans import console, file_kinds, files
from ovstrans.checkpoints.file import load_checkpoint
from ovstrans.clip.weights import read_weight_file
from ovstrans.datasets.description import read_description
from ovstrans.datasets.images import read_image
from ovstrans.datasets.proposals import read_masks
from ovstrans.errors import InputError, MissingFileError, printable, shorten_message
from ovstrans.interop.describe import format_value
from ovstrans.masks.file import load_mask
from ovstrans.parsing import parse_json, parse_toml
from ovstrans.recipes.load import load_recipe
from ovstrans.reports.lock import load_lock
from ovstrans.reports.report import load_reports
from ovstrans.spectrum.file import load_plan
from ovstrans.vocabulary.files import read_vocabulary

JSON = {
    "deep lists": ("[" * 100_000, "nested deeper than 64"),
    "deep objects": ('{"a":' * 5_000 + "1" + "}" * 5_000, "nested deeper than 64"),
    "digits": ('{"a": ' + "9" * 5000 + "}", "a number of 5,000 digits"),
    "a float": ('{"a": 1e999}', "the number 1e999 is too large"),
    "infinity": ('{"a": -Infinity}', "-Infinity is no number of JSON"),
    "nan": ("[NaN]", "NaN is no number of JSON"),
}
TOML = {
    "deep lists": ("a = " + "[" * 5_000, "nested deeper than 64"),
    "dotted": (".".join("a" * 20_000) + " = 1", "a key of more than 32 parts"),
    "a table": ("[" + " . ".join(["'a'"] * 20_000) + "]", "a key of more than 32 parts"),
    "digits": ("a = " + "9" * 5000, "digits"),
    "fewer digits": ("a = " + "9" * 400, "digits"),
}
JSON_READERS: dict[str, Callable[[Path], Any]] = {
    "alpha": load_plan,
    "report": load_reports,
    "lock": load_lock,
    "vocabulary": read_vocabulary,
    "inspect": ovstrans.inspect,
    "proposals": lambda path: read_masks(path, (2, 2)),
}
TOML_READERS: dict[str, Callable[[Path], Any]] = {
    "recipe": lambda path: load_recipe(str(path)),
    "vocabulary": read_vocabulary,
    "dataset": read_description,
}


@pytest.mark.parametrize("reader", JSON_READERS)
@pytest.mark.parametrize("kind", JSON)
def test_json(tmp_path: Path, kind: str, reader: str) -> None:
    text, words = JSON[kind]
    (tmp_path / "a.json").write_text(text)
    start = time.monotonic()
    with pytest.raises(InputError, match=words) as caught:
        JSON_READERS[reader](tmp_path / "a.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 and time.monotonic() - start < 5


@pytest.mark.parametrize("reader", TOML_READERS)
@pytest.mark.parametrize("kind", TOML)
def test_toml(tmp_path: Path, kind: str, reader: str) -> None:
    text, words = TOML[kind]
    (tmp_path / "a.toml").write_text(text)
    start = time.monotonic()
    with pytest.raises(InputError, match=words):
        TOML_READERS[reader](tmp_path / "a.toml")
    assert time.monotonic() - start < 5


def test_what_is_within_the_bounds_is_read() -> None:
    assert parse_json('{"a": [1.5, -3, 123456789012345678901, "[[[", null]}') == {
        "a": [1.5, -3, 123456789012345678901, "[[[", None]
    }
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_toml('a.b.c = "x.y.z"\nlong = "' + "w." * 20 + '"')["a"] == {"b": {"c": "x.y.z"}}


def test_a_long_text_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(InputError, match=r"1,099,511,627,776 bytes of text, at most 4,194,304 are read"):
        files.read_json(tmp_path / "a.json")
    for suffix in (".toml", ".txt", ".csv"):
        os.link(tmp_path / "a.json", tmp_path / f"a{suffix}")
        with pytest.raises(InputError, match="bytes of text, at most"):
            read_vocabulary(tmp_path / f"a{suffix}")


READERS: dict[str, Callable[[Path], Any]] = {
    "weights": read_weight_file,
    "mask": load_mask,
    "checkpoint": load_checkpoint,
    "image": read_image,
    "inspect": ovstrans.inspect,
    "tensors": files.read_tensors,
    "kind": file_kinds.recognize,
    **{f"json {name}": reader for name, reader in JSON_READERS.items()},
    **{f"toml {name}": reader for name, reader in TOML_READERS.items()},
}


@pytest.mark.parametrize("reader", READERS)
def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path: Path, reader: str) -> None:
    suffix = ".toml" if reader.startswith("toml") else ".json"
    os.mkfifo(tmp_path / f"pipe{suffix}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / f"socket{suffix}"))
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    for name, words in (("pipe", "is a pipe"), ("socket", "is a socket"), ("device", "is a device")):
        with pytest.raises(InputError, match=f"{name}{suffix}: {words}, an ordinary file is needed"):
            READERS[reader](tmp_path / f"{name}{suffix}")


def test_paths_that_are_none(tmp_path: Path) -> None:
    for path in ("a\0b", "x" * 5000):
        with pytest.raises(InputError):
            files.existing_file(path)
    with pytest.raises(MissingFileError):
        files.existing_file(tmp_path / "none" / "a")
    with pytest.raises(InputError, match="~nosuchuser/x: no home folder of that user"):
        files.expand_home("~nosuchuser/x")
    (tmp_path / "dataset.toml").write_text('classes = ["a"]\nimages = "i"\nlabels = "l"\nroot = "~nosuchuser"')
    with pytest.raises(InputError, match="~nosuchuser"):
        read_description(tmp_path)
    with pytest.raises(InputError, match="~nosuchuser"):
        ovstrans.open_dataset("folder:~nosuchuser/photos", split="val")


@pytest.mark.parametrize("dtype", [torch.uint32, torch.uint16, torch.complex64, torch.float8_e4m3fn])
def test_safetensors_of_unusual_types(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"w": torch.ones(2).to(dtype)}, tmp_path / "w.safetensors")
    for read in (files.read_tensors, read_weight_file, ovstrans.inspect):
        with pytest.raises(InputError, match=r"w\.safetensors: (w holds numbers of|holds quantized weights)"):
            read(tmp_path / "w.safetensors")


def test_a_header_without_end(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as sparse:
        sparse.write((50 << 20).to_bytes(8, "little") + b"{")
        sparse.truncate(60 << 20)
    with pytest.raises(InputError, match="a header of 52,428,800 bytes, at most"):
        files.read_tensors(path)


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2Ja\x9b31m\u202eb\u2028c\rd"
    shown = r"\x1b[2Ja\x9b31m\u202eb\u2028c\rd"
    assert printable(hostile) == shown == str(InputError(hostile)) == format_value(hostile)
    assert format_value({hostile: [hostile]}) == f"{shown} {shown}"
    console.show('{"a": "\x9b\u202e", "b": "é\u200d"}')
    console.table(hostile, [hostile], [[hostile], ["x" * 10_000]])
    out = capsys.readouterr().out
    assert r'{"a": "\u009b\u202e", "b": "é' in out and not set("\x1b\x9b\u202e\r") & set(out)
    assert "x" * 200 not in out and "more characters" in out


def test_long_values_are_cut() -> None:
    message = f"file: option {'x' * 10_000!r} is none; {'y' * 10_000} and {' '.join(['z'] * 10_000)}"
    shown = shorten_message(message)
    assert len(shown) < 2500 and shown.startswith("file: option 'xxx") and "more characters" in shown
    assert len(str(InputError(message))) < 2500
    path = "/" + "/".join(["folder"] * 100)
    assert shorten_message(f"{path}: no such file") == f"{path}: no such file"
    assert len(format_value(list(range(100_000)))) < 4100 and "(100,000 entries)" in format_value(list(range(100_000)))
