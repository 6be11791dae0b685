"""`inspect(verify=True)` finds every changed byte of files of ours, and says so of files that have no hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import ovstrans
from ovstrans import files
from ovstrans.checkpoints.file import load_checkpoint, save_checkpoint
from ovstrans.cli.main import run as cli
from ovstrans.errors import CheckFailed, InputError
from ovstrans.masks.file import save_mask

DATA = Path(__file__).parent.parent / "data"
SMALL = {"data.size": 64, "data.images": 4, "augment.crop": 64, "training.batch": 2, "model.width": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mask, pruned weights, an export and a run with frozen layers, all of RN-mini."""
    folder = tmp_path_factory.mktemp("made")
    pruned = ovstrans.prune(method="magnitude", sparsity=0.5, steps=0, out=folder / "mask.safetensors", plot=False)
    plan = ovstrans.analyze().plan("count:3")
    ovstrans.finetune(mask=pruned.mask, plan=plan, settings=SMALL, steps=1, out=folder / "run", device="cpu")
    ovstrans.export(folder / "mask.safetensors", folder / "clip.safetensors")
    return folder


FILES = ("mask.safetensors", "mask.weights.safetensors", "clip.safetensors", "run/checkpoint.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_what_was_written_is_intact(made: Path, name: str) -> None:
    assert "content has the hash of when it was written" in ovstrans.inspect(made / name, verify=True).checks


def places(raw: bytes) -> list[int]:
    """Two bytes of every tensor's values, by their offsets in the file."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    spans = [entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"]
    return [8 + length + begin + (end - begin) // 2 for begin, end in spans if end - begin > 3]


@pytest.mark.parametrize("name", FILES)
def test_two_flipped_bytes_in_any_tensor_are_found(made: Path, tmp_path: Path, name: str) -> None:
    raw = (made / name).read_bytes()
    found = places(raw)
    for place in [*found[:: max(1, len(found) // 12)], found[-1]]:
        damaged = bytearray(raw)
        damaged[place] ^= 0x01
        damaged[place + 1] ^= 0x10
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(damaged)
        with pytest.raises((CheckFailed, InputError)) as error:
            ovstrans.inspect(path, verify=True)
        assert isinstance(error.value, CheckFailed), error.value


@pytest.mark.parametrize("name", FILES)
def test_changed_metadata_are_found(made: Path, tmp_path: Path, name: str) -> None:
    tensors, _ = files.read_tensors(made / name)
    with safe_open(made / name, framework="np") as file:
        metadata = file.metadata()
    assert files.CONTENT in metadata
    for key in metadata:
        renamed = {f"{key}x" if each == key else each: value for each, value in metadata.items()}
        for changed in ({**metadata, key: metadata[key] + " "}, renamed):
            save_file(tensors, tmp_path / "changed.safetensors", metadata=changed)
            with pytest.raises((CheckFailed, InputError)):
                ovstrans.inspect(tmp_path / "changed.safetensors", verify=True)


def test_exit_status_of_the_command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = bytearray((made / "run" / "checkpoint.safetensors").read_bytes())
    raw[places(bytes(raw))[-1]] ^= 0x40
    (tmp_path / "c.safetensors").write_bytes(raw)
    assert cli(["inspect", str(tmp_path / "c.safetensors"), "--verify"]) == 3
    assert "does not have the hash that was recorded when it was written" in capsys.readouterr().err
    assert cli(["inspect", str(made / "run"), "--verify"]) == 0


@pytest.mark.parametrize("name", ["mask.safetensors", "mask.weights.safetensors", "checkpoint.safetensors"])
def test_files_of_before_have_no_hash_which_is_said(name: str) -> None:
    if name == "checkpoint.safetensors":  # its framework is a dummy of the tests
        assert load_checkpoint(DATA / name).framework == "dummy" and files.content_is_intact(DATA / name) is None
        return
    checks = ovstrans.inspect(DATA / name, verify=True).checks
    assert "no content hash, as files of earlier versions have none" in checks


def test_loading_computes_no_hash(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> str:
        raise AssertionError("hashed")

    monkeypatch.setattr(files, "content_sha256", fail)
    ovstrans.load_mask(made / "mask.safetensors")
    ovstrans.load_checkpoint(made / "run")
    ovstrans.inspect(made / "mask.safetensors")


def test_frozen_layers_are_those_of_the_clip(made: Path, tmp_path: Path) -> None:
    checks = ovstrans.inspect(made / "run", verify=True).parts[0].checks
    assert "3 frozen layers are those of RN-mini bundled" in checks
    checkpoint = ovstrans.load_checkpoint(made / "run")
    name = checkpoint.provenance["frozen"][1]
    weight = checkpoint.state[f"backbone.{name}.weight"]
    at = tuple(weight.nonzero()[0].tolist())
    weight[at] += 1  # written anew, so the content hash is right
    save_checkpoint(tmp_path / "c.safetensors", checkpoint)
    with pytest.raises(CheckFailed, match=rf"1 weights of the frozen layer {name} are not those of RN-mini"):
        ovstrans.inspect(tmp_path / "c.safetensors", verify=True)


@pytest.mark.parametrize("values", ["fp16", "bf16", "int8"])
def test_frozen_layers_may_be_rounded(made: Path, tmp_path: Path, values: str) -> None:
    path = tmp_path / "c.safetensors"
    ovstrans.export(made / "run", path, format="sparse", values=values, compress=True)
    assert "3 frozen layers are those of RN-mini bundled" in ovstrans.inspect(path, verify=True).checks
    checkpoint = ovstrans.load_checkpoint(path)
    name = checkpoint.provenance["frozen"][1]
    key = f"backbone.{name}.weight"
    weight = checkpoint.state[key]
    at = tuple(weight.nonzero()[0].tolist())
    step = float(checkpoint.quantized[key].scales[at[0]]) if values == "int8" else float(weight[at])
    weight[at] -= step if weight[at] > 0 else -step
    save_checkpoint(path, checkpoint)
    with pytest.raises(CheckFailed, match=rf"1 weights of the frozen layer {name} are not those of RN-mini"):
        ovstrans.inspect(path, verify=True)


def test_frozen_layers_of_a_clip_that_is_not_at_hand_are_not_compared(made: Path, tmp_path: Path) -> None:
    checkpoint = ovstrans.load_checkpoint(made / "run")
    checkpoint.clip["pretrained"] = "gone.pt"
    save_checkpoint(tmp_path / "c.safetensors", checkpoint)
    checks = ovstrans.inspect(tmp_path / "c.safetensors", verify=True).checks
    assert "RN-mini gone.pt not at hand: frozen layers not compared" in checks


def test_equal_files_are_equal_to_the_byte(made: Path, tmp_path: Path) -> None:
    mask = ovstrans.load_mask(made / "mask.safetensors")
    save_mask(tmp_path / "again.safetensors", mask)
    assert (tmp_path / "again.safetensors").read_bytes() == (made / "mask.safetensors").read_bytes()
    assert files.content_is_intact(tmp_path / "again.safetensors")
