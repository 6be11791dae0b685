"""Reading what other programs wrote, and never running it."""

from __future__ import annotations

import collections
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from ovstrans.clip.pickles import read_pickle
from ovstrans.clip.weights import bake_masks, read_weight_file
from ovstrans.errors import InputError, MismatchError
from ovstrans.interop.published_names import from_fcclip, rename_known

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PYTHON_2 = (
    b"\x80\x02}U\x05modelq\x00}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89U\x08\x00\x00\x80?\x00\x00 \xc0tbss."
)
"""What Python 2 wrote of {"model": {"w": array([1, -2.5])}}: text opcodes where Python 3 has bytes."""


class Payload:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class Call:
    """An object whose pickle calls whatever is wanted."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def make_state() -> collections.OrderedDict[str, torch.Tensor]:
    """What `state_dict` returns: ordered, and with the versions of modules beside the entries."""
    generator = torch.Generator().manual_seed(0)
    state = collections.OrderedDict(
        {
            "backbone.conv1.weight": torch.randn(4, 3, 3, 3, generator=generator),
            "backbone.bn1.num_batches_tracked": torch.tensor(7),
            "sem_seg_head.predictor.logit_scale": torch.tensor(2.5),
            "half": torch.randn(5, generator=generator).half(),
        }
    )
    state._metadata = {"": {"version": 1}, "sem_seg_head": {"version": 2}}  # type: ignore[attr-defined]
    return state


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoint_of_detectron2(tmp_path: Path, zipped: bool) -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    rest = {
        "optimizer": optimizer.state_dict(),
        "scheduler": {**scheduler.state_dict(), "last_lr": [np.float64(1e-4)], "best": np.arange(3.0)},
        "iteration": np.int64(368750),
    }
    torch.save({"model": make_state(), **rest}, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    found = read_weight_file(tmp_path / "m.pth")
    assert_same(found.state, make_state())
    assert found.ignored == ("optimizer", "scheduler", "iteration") and found.origin == ""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_zoo_pickle(tmp_path: Path, protocol: int) -> None:
    arrays = {key: value.numpy() for key, value in make_state().items()}
    value = {"model": arrays, "__author__": "someone", "matching_heuristics": True, "score": np.float32(0.5)}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    found = read_weight_file(tmp_path / "m.pkl")
    assert_same(found.state, make_state())
    assert found.ignored == ("__author__", "matching_heuristics", "score")


def test_pickle_of_python_2(tmp_path: Path) -> None:
    assert np.array_equal(pickle.loads(PYTHON_2, encoding="latin1")["model"]["w"], [1, -2.5])
    (tmp_path / "m.pkl").write_bytes(PYTHON_2)
    assert_same(read_weight_file(tmp_path / "m.pkl").state, {"w": torch.tensor([1.0, -2.5])})


@given(
    kind=st.sampled_from(["?", "i1", "<i2", ">i4", "<i8", "u1", "<f2", ">f4", "<f8"]),
    shape=st.lists(st.integers(0, 4), max_size=4),
    fortran=st.booleans(),
    protocol=st.sampled_from(PROTOCOLS),
)
def test_every_array_comes_back(kind: str, shape: list[int], fortran: bool, protocol: int) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    array = np.asfortranarray(array) if fortran else array
    found = read_pickle(io.BytesIO(pickle.dumps([array, *array.flat], protocol=protocol)))
    assert isinstance(found[0], torch.Tensor) and found[0].shape == array.shape
    assert found[0].numpy().dtype == array.dtype.newbyteorder("=") and np.array_equal(found[0].numpy(), array)
    assert found[1:] == [number.item() for number in array.flat]


def test_safetensors(tmp_path: Path) -> None:
    save_file(dict(make_state()), tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = read_weight_file(tmp_path / "m.safetensors")
    assert_same(dict(sorted(found.state.items())), dict(sorted(make_state().items())))
    assert found.metadata == {"format": "pt"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    state = {prefix + key: value for key, value in make_state().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "m.pth")
    assert_same(read_weight_file(tmp_path / "m.pth").state, make_state())


def test_parts_of_a_model(tmp_path: Path) -> None:
    conv = nn.Conv2d(2, 2, 1)
    prune.l1_unstructured(conv, "weight", amount=2)
    torch.save(
        {"first_conv": {"weight": torch.ones(1)}, "backbone": conv.state_dict(), "sem_seg_head": {"w": torch.ones(2)}},
        tmp_path / "seg_backbone_imp3.pth",
    )
    found = read_weight_file(tmp_path / "seg_backbone_imp3.pth")
    assert set(found.state) == {
        "backbone.bias",
        "backbone.weight_orig",
        "backbone.weight_mask",
        "sem_seg_head.w",
    }
    assert found.ignored == ("first_conv",)
    baked = bake_masks(found.state, "file")
    assert torch.equal(baked["backbone.weight"], conv.weight) and int((baked["backbone.weight"] == 0).sum()) == 2
    assert set(baked) == {"backbone.bias", "backbone.weight", "sem_seg_head.w"}


def test_baked_zeros_are_exact() -> None:
    weight = torch.tensor([float("nan"), float("inf"), -1.0, 2.0])
    baked = bake_masks({"a.weight_orig": weight, "a.weight_mask": torch.tensor([0.0, 0, 0, 1])}, "file")
    assert baked["a.weight"].tolist() == [0, 0, 0, 2] and not torch.signbit(baked["a.weight"]).any()
    with pytest.raises(InputError, match="file: a.weight_orig has no a.weight_mask"):
        bake_masks({"a.weight_orig": weight}, "file")
    with pytest.raises(MismatchError, match=r"has shape \[4\], its mask \[3\]"):
        bake_masks({"a.weight_orig": weight, "a.weight_mask": torch.ones(3)}, "file")


HARMFUL = {
    "posix.system": lambda marker: Call(__import__("os").system, f"touch {marker}"),
    "builtins.eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "builtins.getattr": lambda marker: Call(getattr, marker, "touch"),
    "numpy.fromfile": lambda marker: Call(np.fromfile, str(marker)),
}


@pytest.mark.parametrize("name", HARMFUL)
@pytest.mark.parametrize("kind", ["pkl", "pth", "legacy"])
def test_code_is_refused_by_name_and_not_run(tmp_path: Path, name: str, kind: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / f"m.{kind}"
    value = {"model": make_state(), "optimizer": HARMFUL[name](marker)}
    if kind == "pkl":
        path.write_bytes(pickle.dumps({"model": {"w": np.ones(2)}, "optimizer": value["optimizer"]}))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=kind == "pth")
    says = name.rpartition(".")[2]  # readers differ in how they call the module
    with pytest.raises(
        InputError, match=f"{path.name}: asks for .*{says}.*could run code; nothing was loaded"
    ) as error:
        read_weight_file(path)
    assert not marker.exists() and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "pickled",
    [
        pickle.dumps(collections.OrderedDict.fromkeys),  # a name inside an allowed one
        b"\x80\x04\x8c\x0bcollections\x8c\x0dabc.Mapping\x93.",
        b"cnumpy\nndarray\n.",  # a name alone: harmless, and no checkpoint
        b"cnumpy\nndarray\n)\x81.",
        pickle.dumps(np.array([Payload(Path("x"))], dtype=object)),
        pickle.dumps(np.array(["text"])),
        pickle.dumps(np.zeros(2, dtype=[("a", "f4")])),
        pickle.dumps({"model": {"w": 1}}),
        pickle.dumps([np.ones(2)]),
        b"\x80\x02Ptorch\nQ.",
        b"(lp0\ng0\na.",  # a list that holds itself
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, pickled: bytes) -> None:
    (tmp_path / "m.pkl").write_bytes(pickled)
    with pytest.raises(InputError, match="m.pkl"):
        read_weight_file(tmp_path / "m.pkl")


@pytest.mark.parametrize(
    "changed",
    [
        ("f4", "O8"),
        ("f4", "f8"),
        ("K\x02\x85", "K\x03\x85"),
        ("K\x02\x85", "J\xff\xff\xff\xff\x85"),
        ("U\x01<", "U\x01X"),
    ],
)
def test_arrays_whose_parts_do_not_agree(tmp_path: Path, changed: tuple[str, str]) -> None:
    before, after = (text.encode("latin1") for text in changed)
    assert before in PYTHON_2
    (tmp_path / "m.pkl").write_bytes(PYTHON_2.replace(before, after))
    if changed[1].startswith("J"):  # -1 stands for the size that fits, as in numpy
        assert read_weight_file(tmp_path / "m.pkl").state["w"].shape == (2,)
        return
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read_weight_file(tmp_path / "m.pkl")


@pytest.mark.parametrize("name", ["m.pth", "m.pkl", "old.pth", "m.safetensors"])
def test_truncated_anywhere(tmp_path: Path, name: str) -> None:
    whole = io.BytesIO()
    if name.endswith(".pkl"):
        pickle.dump({"model": {key: value.numpy() for key, value in make_state().items()}}, whole)
    elif name.endswith(".pth"):
        torch.save({"model": make_state()}, whole, _use_new_zipfile_serialization=name == "m.pth")
    else:
        save_file(dict(make_state()), tmp_path / "whole")
        whole.write((tmp_path / "whole").read_bytes())
    raw = whole.getvalue()
    for length in sorted({0, 1, 5, *range(0, len(raw) - 1, len(raw) // 17), len(raw) - 1}):
        (tmp_path / name).write_bytes(raw[:length])
        with pytest.raises(InputError, match=name):
            read_weight_file(tmp_path / name)


def test_tensors_of_a_torchscript_archive_are_read_and_its_code_is_not_run(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2).half()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(model).save(tmp_path / "RN50.pt")
    found = read_weight_file(tmp_path / "RN50.pt")
    assert_same(dict(sorted(found.state.items())), dict(sorted(model.state_dict().items())))
    assert "def forward" in found.code


@pytest.mark.parametrize("value", [torch.ones(2), [torch.ones(2)], {"model": {}}, {"iteration": 3}])
def test_what_is_no_checkpoint(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "m.pth")
    with pytest.raises(InputError, match="m.pth: (holds a|no tensors)"):
        read_weight_file(tmp_path / "m.pth")


def test_renaming_keeps_what_it_knows() -> None:
    def renamer(state: Any) -> dict[str, torch.Tensor]:
        if "x" in state:
            raise MismatchError("x: not one of ours")
        return {key.upper(): value[0] for key, value in state.items()}

    renamed, unknown = rename_known({"x": torch.ones(1), "a": torch.ones(1)}, renamer, "file")
    assert list(renamed) == ["A"] and unknown == ["x"]
    with pytest.raises(MismatchError, match="file: its tensors do not fit their names"):
        rename_known({"a": torch.tensor(1.0)}, renamer, "file")
    for name, value in (("in_proj_weight", torch.tensor(1.0)), ("in_proj_bias", torch.ones(2))):
        fused = f"sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.{name}"
        with pytest.raises(MismatchError, match="file: its tensors do not fit their names"):
            rename_known({fused: value}, from_fcclip, "file")
