"""Weights as other people's training code and tools leave them: one reader takes them all, or says what is wrong."""

from __future__ import annotations

import argparse
import collections
import io
import json
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from ovstrans.clip.load import load_clip, random_clip
from ovstrans.clip.weights import find_clip, read_state_dict, read_weight_file, weights_sha256
from ovstrans.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A whole CLIP's state dict."""
    return {key: value.clone() for key, value in random_clip(seed=3).model.state_dict().items()}


def renamed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def loads_as(path: Path, state: dict[str, Tensor]) -> bool:
    """Whether `load_clip` takes a file and has exactly these weights then."""
    clip = load_clip(pretrained=str(path))
    found = clip.model.state_dict()
    return clip.has_text and all(torch.equal(found[key], value) for key, value in state.items())


def training_checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """What open_clip's training code saves, with numpy's numbers in the optimizer's state as real ones have."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=np.float64(1e-3))
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "name": "2026_01_02-model_RN50-lr_0.001",
        "state_dict": renamed(state, "module."),
        "optimizer": {**optimizer.state_dict(), "best": np.float32(0.5), "order": np.arange(3)},
        "scaler": {"scale": 65536.0},
    }


PREFIXES = (
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.model.",
    "model.module.",
    "net.",
)
CONTAINERS = ("state_dict", "model_state_dict", "state_dict_ema", "model_ema", "model")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_prefixes(tmp_path: Path, state: dict[str, Tensor], prefix: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": renamed(state, prefix)}, path)
    else:
        save_file(renamed(state, prefix), path)
    assert loads_as(path, state)


def test_a_compiled_image_encoder_inside_the_model(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({key.replace("visual.", "visual._orig_mod."): value for key, value in state.items()}, tmp_path / "w.pt")
    assert loads_as(tmp_path / "w.pt", state)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_containers(tmp_path: Path, state: dict[str, Tensor], container: str, zipped: bool) -> None:
    torch.save(
        {container: renamed(state, "module."), "optimizer": {"state": {0: torch.ones(2)}}, "epoch": 1},
        tmp_path / "w.pth",
        _use_new_zipfile_serialization=zipped,
    )
    assert loads_as(tmp_path / "w.pth", state)
    assert read_weight_file(tmp_path / "w.pth").ignored == ("optimizer", "epoch")


def test_trained_weights_come_before_averaged_ones(tmp_path: Path) -> None:
    torch.save({"state_dict_ema": {"w": torch.zeros(1)}, "state_dict": {"w": torch.ones(1)}}, tmp_path / "w.pth")
    found = read_weight_file(tmp_path / "w.pth")
    assert found.state["w"].item() == 1 and found.ignored == ("state_dict_ema",)


@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoint_of_open_clip(tmp_path: Path, state: dict[str, Tensor], zipped: bool) -> None:
    torch.save(training_checkpoint(state), tmp_path / "epoch_3.pt", _use_new_zipfile_serialization=zipped)
    assert loads_as(tmp_path / "epoch_3.pt", state)


def test_lightning_checkpoint(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """The model is an attribute of the module, which has tensors of its own beside it."""
    saved = {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**renamed(state, "model."), "loss.weight": torch.ones(3)},
        "hyper_parameters": {"config": argparse.Namespace(lr=1)},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": ""}},
        "hparams_name": "kwargs",
    }
    torch.save(saved, tmp_path / "last.ckpt")
    assert loads_as(tmp_path / "last.ckpt", state)


def test_counters_of_thop(tmp_path: Path, state: dict[str, Tensor]) -> None:
    counted = {
        **renamed(state, "module."),
        "total_ops": torch.zeros(1),
        "module.visual.conv1.total_params": torch.ones(1),
    }
    torch.save(counted, tmp_path / "w.pt")
    assert loads_as(tmp_path / "w.pt", state)


def test_weight_averaging(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**renamed(state, "module."), "n_averaged": torch.tensor(4)}, tmp_path / "w.pt")
    assert loads_as(tmp_path / "w.pt", state)


def test_a_module_saved_whole(tmp_path: Path) -> None:
    """The classes that the pickle names are not imported: its tensors are attributes of inert objects."""
    clip = random_clip(seed=3)
    torch.save(clip.model, tmp_path / "model.pth")
    torch.save({"model": nn.Sequential(collections.OrderedDict(clip=clip.model)), "epoch": 1}, tmp_path / "more.pth")
    for name in ("model.pth", "more.pth"):
        assert loads_as(tmp_path / name, dict(clip.model.state_dict()))


def test_masks_of_torchs_pruning(tmp_path: Path) -> None:
    clip = random_clip(seed=3)
    convs = [module for module in clip.visual.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        prune.l1_unstructured(conv, "weight", amount=0.5)
    torch.save(clip.model.state_dict(), tmp_path / "w.pt")
    for conv in convs:
        prune.remove(conv, "weight")
    assert loads_as(tmp_path / "w.pt", dict(clip.model.state_dict()))
    assert (
        int((load_clip(pretrained=str(tmp_path / "w.pt")).visual.conv1.weight == 0).sum())
        == convs[0].weight.numel() // 2
    )


def test_masks_alone_are_no_weights(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight_mask": torch.ones(2, 2)}, tmp_path / "imp.pth")
    with pytest.raises(InputError, match=r"imp\.pth: holds masks and no weights; give it as `mask`"):
        read_state_dict(tmp_path / "imp.pth")


@pytest.mark.parametrize("layout", ["coo", "uncoalesced", "csr", "csc", "bsr"])
@pytest.mark.parametrize("zipped", [True, False])
def test_sparse_tensors_become_dense(tmp_path: Path, layout: str, zipped: bool) -> None:
    dense = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)) * (torch.arange(96).reshape(8, 12) % 3 == 0)
    sparse = {
        "coo": lambda: dense.to_sparse(),
        "uncoalesced": lambda: torch.sparse_coo_tensor(
            torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 2.0]), (8, 12)
        ),
        "csr": lambda: dense.to_sparse_csr(),
        "csc": lambda: dense.to_sparse_csc(),
        "bsr": lambda: dense.to_sparse_bsr((2, 3)),
    }[layout]()
    torch.save({"w": sparse}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    found = read_state_dict(tmp_path / "w.pt")["w"]
    assert found.layout == torch.strided and torch.equal(found, sparse.to_dense())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_semi_structured_tensors_become_dense(tmp_path: Path, dtype: torch.dtype) -> None:
    dense = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    if dtype == torch.float32:
        dense.view(32, 32, 2)[:, :, 1] = 0  # of float32, one of two
    else:
        dense.view(32, 16, 4)[:, ::2, 2:] = 0
        dense.view(32, 16, 4)[:, 1::2, :2] = 0
    packed, meta = sparse_semi_structured_from_dense_cutlass(dense)
    parts = {"packed": packed, "meta": meta, "packed_t": None, "meta_t": None, "compressed_swizzled_bitmask": None}
    torch.save({"fc.weight": SparseSemiStructuredTensorCUTLASS(dense.shape, **parts)}, tmp_path / "w.pt")
    assert torch.equal(read_state_dict(tmp_path / "w.pt")["fc.weight"], dense)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    torch.save(cast, tmp_path / "w.pt")
    save_file(cast, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        assert loads_as(tmp_path / name, {key: value.to(state[key].dtype) for key, value in cast.items()})


def test_views_and_shared_storage(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    saved = {
        "t": whole.T,
        "row": whole[1],
        "step": whole[:, ::2],
        "p": nn.Parameter(whole[2:]),
        "none": torch.zeros(0, 3),
    }
    saved["c"] = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    saved["b"], saved["wide"] = torch.tensor([True, False]), torch.ones(1, 2).expand(3, 2)
    for zipped in (True, False):
        torch.save(saved, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        found = read_weight_file(tmp_path / "w.pt").state
        assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in saved.items())


def test_suffixes_do_not_matter(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "really_safe.bin")
    torch.save(state, tmp_path / "really_torch.safetensors")
    assert loads_as(tmp_path / "really_safe.bin", state) and loads_as(tmp_path / "really_torch.safetensors", state)


def test_a_plain_pickle_of_tensors(tmp_path: Path, state: dict[str, Tensor]) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"state_dict": state}))
    assert loads_as(tmp_path / "w.pkl", state)


def test_two_encoders_are_not_mixed_up(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**renamed(state, "student."), **renamed(state, "teacher.")}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w.pt: holds 2 image encoders \('student.', 'teacher.'\); save one"):
        load_clip(pretrained=str(tmp_path / "w.pt"))


def test_image_encoder_inside_a_framework(state: dict[str, Tensor]) -> None:
    encoder = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    for prefix in ("backbone.", "backbone.clip_model.visual.", ""):
        found = find_clip({**renamed(encoder, prefix), "x.y": torch.ones(1)}, "file")
        inner = {key.removeprefix("visual."): value for key, value in found.items() if key != "x.y"}
        assert weights_sha256(inner) == weights_sha256(encoder), prefix


QUANTIZED = {
    "tensor": lambda: {"fc.weight": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)},
    "channels": lambda: {
        "fc.weight": torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8)
    },
    "dynamic": lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear}).state_dict(),
    "int8": lambda: {"fc.weight": torch.ones(2, 2, dtype=torch.int8), "fc.SCB": torch.ones(2)},
    "float8": lambda: {"fc.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)},
    "gptq": lambda: {"fc.qweight": torch.ones(2, 2, dtype=torch.int32), "fc.scales": torch.ones(2)},
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    torch.save(QUANTIZED[kind](), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: holds quantized weights.*; give the weights that they were") as error:
        read_state_dict(tmp_path / "w.pt")
    assert "\n" not in str(error.value)


def archive_of(name: str, content: bytes, kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=out, mode="w") as tar:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    else:
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr(name, content)
    return out.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134217728\n"
INDEX = {
    "metadata": {"total_size": 9},
    "weight_map": {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"},
}
WRONG = {
    "empty": (b"", "empty, not .*; copy or download it again"),
    "pointer": (POINTER, "a Git LFS pointer, not the file itself.*git lfs pull"),
    "page": (
        b"<!DOCTYPE html>\n<html><body>Sign in</body></html>",
        "an HTML page, saved in place of the file.*download",
    ),
    "denied": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "an XML document, saved in place"),
    "index": (json.dumps(INDEX).encode(), "the index of weights in 2 files .*join them into one"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG image, not"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "a gzip archive, not .*unpack it"),
    "tar": (archive_of("w.pt", b"x" * 9, "tar"), "a tar archive, not .*unpack it"),
    "zip": (archive_of("w.npy", b"x" * 9, "zip"), r"a zip archive, but not a torch file \(no data.pkl in it\)"),
    "noise": (bytes(range(1, 200)), "not a file of weights"),
    "zeros": (bytes(64), "not a file of weights"),
}


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_said_right(tmp_path: Path, kind: str, name: str) -> None:
    content, message = WRONG[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: {message}") as error:
        read_weight_file(tmp_path / name)
    said = str(error.value)
    assert "could run code" not in said and "architecture" not in said and "\n" not in said


def test_a_part_of_a_checkpoint(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model-00001-of-00003.safetensors")
    with pytest.raises(InputError, match=r"safetensors: part 1 of 3 of a checkpoint in several files; join them"):
        read_weight_file(tmp_path / "model-00001-of-00003.safetensors")


@pytest.mark.parametrize("name", ["w.pt", "old.pt", "w.safetensors"])
@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_truncation_is_called_so(tmp_path: Path, name: str, part: float) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save({"w": torch.randn(5000)}, path, _use_new_zipfile_serialization=name == "w.pt")
    else:
        save_file({"w": torch.randn(5000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match=rf"{name}: .*truncated.*copy or download it again"):
        read_weight_file(path)


def test_damage_in_a_torch_file_is_found(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(5000)}, tmp_path / "w.pt")
    content = bytearray((tmp_path / "w.pt").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pt: not a readable checkpoint \(Bad CRC-32.*copy or download it again"):
        read_weight_file(tmp_path / "w.pt")


class Calls:
    """An object whose pickle calls something."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('ran', 'w').close()",)


@pytest.mark.parametrize("place", ["top", "beside", "state", "object"])
def test_calls_are_refused_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    value: Any = {
        "top": Calls(),
        "beside": {"state_dict": {"w": torch.ones(1)}, "optimizer": Calls()},
        "state": {"state_dict": {"w": Calls()}},
        "object": {"state_dict": {"w": torch.ones(1)}, "args": argparse.Namespace(x=Calls())},
    }[place]
    for name, write in (("w.pt", torch.save), ("w.pkl", lambda value, path: path.write_bytes(pickle.dumps(value)))):
        write(value, tmp_path / name)
        with pytest.raises(InputError, match=rf"{name}: asks for builtins.exec, which could run code"):
            read_weight_file(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_the_wrong_kind_of_ours(tmp_path: Path) -> None:
    data = Path(__file__).parent.parent / "data"
    for name, message in (
        ("mask.safetensors", "a mask of ovstrans, not a file of weights; give it as `mask`"),
        ("checkpoint.safetensors", "a checkpoint of ovstrans, not a file of weights; give it as the target of"),
        ("alpha.json", "an alpha file with a freeze plan, not a file of weights; give it as `plan`"),
        ("report.json", "a report of `ovstrans bench`, not a file of weights"),
    ):
        with pytest.raises(InputError, match=f"{name}: {message}"):
            load_clip(pretrained=str(data / name))


def test_torchscript_file(tmp_path: Path) -> None:
    clip = random_clip(seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace_module(
            clip.model.eval(), {"forward": (torch.zeros(1, 3, 96, 96), clip.tokenizer(["a star"]))}, check_trace=False
        )
        traced.save(tmp_path / "clip.pt")
    state = {key: value for key, value in clip.model.state_dict().items() if "attn_mask" not in key}
    assert loads_as(tmp_path / "clip.pt", state)
