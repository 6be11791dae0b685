"""Reading weights and naming them."""

import argparse
import datetime
import hashlib
import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ovstrans.clip.weights import fit_state, list_keys, read_state_dict, require_finite, weights_sha256
from ovstrans.errors import InputError, MismatchError


def test_hash_follows_the_documented_bytes():
    state = {"b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3), "a.count": torch.tensor(7)}
    digest = hashlib.sha256()
    digest.update(b"a.countint64" + json.dumps([]).encode() + np.array(7, dtype="<i8").tobytes())
    digest.update(b"b.weightfloat32" + json.dumps([2, 3]).encode() + np.arange(6, dtype="<f4").tobytes())
    assert weights_sha256(state) == digest.hexdigest()


def test_hash_sees_names_types_shapes_and_values():
    base = {"w": torch.ones(4, 2)}
    others = [
        {"v": torch.ones(4, 2)},
        {"w": torch.ones(2, 4)},
        {"w": torch.ones(4, 2).half()},
        {"w": torch.zeros(4, 2)},
    ]
    assert len({weights_sha256(state) for state in [base, *others]}) == 5
    assert weights_sha256({"w": torch.ones(2, 4).T}) == weights_sha256(base)  # memory layout does not matter


def test_reads_safetensors_and_torch_files(tmp_path):
    state = {"conv1.weight": torch.randn(2, 3)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save({"state_dict": {"module.conv1.weight": state["conv1.weight"]}, "epoch": 3}, tmp_path / "c.pt")
    for name in ("a.safetensors", "b.pt", "c.pt"):
        assert torch.equal(read_state_dict(tmp_path / name)["conv1.weight"], state["conv1.weight"])


class _Runs:
    def __reduce__(self):
        return (print, ("ran",))


def test_refuses_pickles_that_run_code(tmp_path, capsys):
    torch.save({"w": _Runs()}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(_Runs()))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(InputError, match=name):
            read_state_dict(tmp_path / name)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_objects_beside_the_weights_are_left_out(tmp_path, protocol):
    options = {"args": argparse.Namespace(a=1), "where": Path("x"), "many": {1}, "made": datetime.datetime(2026, 1, 2)}
    torch.save({"model": {"w": torch.ones(2)}, **options}, tmp_path / "w.pth", pickle_protocol=max(protocol, 2))
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"w": np.ones(2)}, **options}, protocol=protocol))
    for name in ("w.pth", "w.pkl"):
        assert read_state_dict(tmp_path / name)["w"].tolist() == [1, 1]


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x00" * 64])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_refuses_what_is_no_weights_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name) as caught:
        read_state_dict(tmp_path / name)
    assert "could run code" not in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4), st.booleans(), st.booleans())
def test_damage_anywhere_is_one_short_line(changes, archive, cut):
    """Every way to fail is ours, without a word of torch's advice."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.pt"
        torch.save({"w": torch.ones(9)}, path, _use_new_zipfile_serialization=archive)
        content = bytearray(path.read_bytes())
        for place, value in changes:
            content[place % len(content)] = value
        path.write_bytes(content[: len(content) // 2] if cut else content)
        try:
            read_state_dict(path)
        except InputError as error:
            message = str(error).removeprefix(str(path))
            assert len(message) < 200 and "weights_only" not in message and "\n" not in message


def test_the_causal_mask_of_older_files_is_no_weight(tmp_path):
    mask = torch.full((3, 3), float("-inf")).triu(1)
    save_file({"conv1.weight": torch.ones(2), "attn_mask": mask}, tmp_path / "w.safetensors")
    assert list(read_state_dict(tmp_path / "w.safetensors")) == ["conv1.weight"]


def test_truncated_safetensors(tmp_path):
    save_file({"w": torch.randn(100)}, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-40])
    with pytest.raises(InputError, match="not an intact safetensors"):
        read_state_dict(tmp_path / "w.safetensors")


def test_nan_is_named():
    with pytest.raises(InputError, match="layer1.w holds 2 values"):
        require_finite({"ok": torch.ones(2), "layer1.w": torch.tensor([1.0, float("nan"), float("inf")])}, "file")


def test_missing_and_unexpected_entries_are_told_apart() -> None:
    model = {"a": torch.empty(2, device="meta"), "b": torch.empty(3, device="meta")}
    model["n.num_batches_tracked"] = torch.empty((), dtype=torch.int64, device="meta")
    fit = fit_state({"c": torch.ones(1), "a": torch.ones(2), "m.num_batches_tracked": torch.ones(())}, model, "file")
    assert (list(fit.state), fit.missing, fit.unexpected) == (["a"], ("b",), ("c",))
    with pytest.raises(MismatchError, match=r"^file: lacks 1 entry \(b\) .* 1 that fit and 1 .*another architecture$"):
        fit.require_complete()
    with pytest.raises(MismatchError, match=r"file: has 1 entry \(c\) that the model does not have"):
        fit.require_known()
    with pytest.raises(MismatchError, match="take half$"):
        fit.require_complete(remedy="take half")
    fit.require_complete(needed=lambda key: key != "b")
    with pytest.raises(MismatchError, match=r"file: a has shape \[2, 1\], the model needs \[2\]"):
        fit_state({"a": torch.ones(2, 1)}, model, "file")


def test_optional_entries_are_listed_nowhere() -> None:
    model = {"a": torch.ones(2), "n.num_batches_tracked": torch.ones(())}
    assert fit_state({"a": torch.ones(2)}, model, "file").missing == ()
    assert fit_state({"a": torch.ones(2)}, model, "file", optional=lambda key: False).missing == (
        "n.num_batches_tracked",
    )
    fit = fit_state(
        {"a": torch.ones(2), "x": torch.ones(1)}, {**model, "b": torch.ones(1)}, "f", optional=lambda _: True
    )
    assert fit.missing == fit.unexpected == ()


def test_a_state_of_which_nothing_fits_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"^file: has 1 entry \(b\), none of which the model has"):
        fit_state({"b": torch.ones(2)}, {"a": torch.ones(2)}, "file")


def test_list_of_keys_is_short() -> None:
    assert list_keys(["a"]) == "1 entry (a)" and list_keys(["a", "b", "c"]) == "3 entries (a, b, c)"
    assert list_keys(list("abcde")) == "5 entries (a, b, c, ...)"
