from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ovstrans import files
from ovstrans.errors import InputError

METADATA = {letter: letter * 3 for letter in "hgfedcba"} | {"odd": 'é "\\ \n\x01\x7f 模'}


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(5), "a": torch.ones(3)}
    for number in range(4):
        shuffled = dict(sorted(METADATA.items(), key=lambda item: hash((item, number))))
        files.write_tensors(tmp_path / str(number), tensors, shuffled)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(4)}) == 1
    with safe_open(tmp_path / "0", framework="pt") as file:
        hashed = file.metadata().pop(files.CONTENT)
        assert {**file.metadata(), files.CONTENT: hashed} == {**METADATA, files.CONTENT: hashed}
        assert hashed == files.content_sha256(tensors, METADATA)
    assert torch.equal(load_file(tmp_path / "0")["b"], torch.arange(5))


def test_shared_and_strided_tensors_are_written_whole(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "whole": whole,
        "again": whole,
        "part": whole[1],
        "turned": whole.permute(2, 0, 1),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0),
    }
    files.write_tensors(tmp_path / "x", tensors, {"k": "v"})
    read = load_file(tmp_path / "x")
    assert set(read) == set(tensors)
    assert all(torch.equal(read[key], value) for key, value in tensors.items())


def test_undecodable_path_in_metadata(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "x", {"a": torch.ones(1)}, {"pretrained": "w\udcff.pt"})
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata()["pretrained"] == "w\\udcff.pt"


@pytest.mark.parametrize("before", [None, b"the file of before"])
def test_a_failure_on_the_way_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    target = tmp_path / "x.safetensors"
    if before is not None:
        target.write_bytes(before)

    def fail(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_sort_metadata", fail)
    with pytest.raises(KeyboardInterrupt):
        files.write_tensors(target, {"a": torch.ones(9)}, {"k": "v"})
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if before is None else ["x.safetensors"])
    assert before is None or target.read_bytes() == before


def test_full_disk_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_sort_metadata", fail)
    with pytest.raises(InputError, match="No space left"):
        files.write_tensors(tmp_path / "x", {"a": torch.ones(9)}, {"k": "v"})
    assert not list(tmp_path.iterdir())
