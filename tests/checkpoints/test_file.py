from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ovstrans.checkpoints import file as checkpoint_file
from ovstrans.checkpoints.file import FORMAT, METADATA, load_checkpoint, save_checkpoint
from ovstrans.errors import InputError, MismatchError, MissingFileError
from tests.checkpoints.dummies import CLIP, VOCABULARY, make_checkpoint
from tests.masks.dummies import MASKED, Framework, cut_points, documented_code, make_mask, tamper

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "checkpoint.safetensors", make_checkpoint())
    return tmp_path / "checkpoint.safetensors"


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right)
    else:
        assert left == right


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("with_text", [True, False])
def test_round_trip(tmp_path: Path, masked: bool, with_text: bool) -> None:
    checkpoint = make_checkpoint(masked=masked, **({} if with_text else {"text_encoder": None}))
    save_checkpoint(tmp_path / "x.safetensors", checkpoint)
    again = load_checkpoint(tmp_path / "x.safetensors")
    for item in fields(checkpoint):
        if item.name not in ("mask", "path"):
            assert_same(getattr(again, item.name), getattr(checkpoint, item.name))
    assert again.vocabulary == VOCABULARY
    if not masked:
        assert again.mask is None
        return
    assert again.mask is not None and checkpoint.mask is not None
    assert_same(again.mask.tensors, checkpoint.mask.tensors)
    for key in ("model", "pretrained", "weights_sha256", "method", "recipe", "created_by"):
        assert getattr(again.mask, key) == getattr(checkpoint.mask, key)
    assert again.mask.violations(again.state) == []


def test_loaded_state_fits_its_framework(saved: Path) -> None:
    loaded = load_checkpoint(saved)
    framework = Framework()
    framework.load_state_dict(loaded.state)
    assert loaded.mask is not None and loaded.mask.violations(framework) == []


def test_the_documented_code_reads_it(saved: Path) -> None:
    code = documented_code(checkpoint_file.__doc__ or "")
    assert len(code.splitlines()) <= 20
    names: dict[str, Callable[[Path], tuple[dict[str, np.ndarray], dict[str, str]]]] = {}
    exec(code, names)
    state, metadata = names["read_checkpoint"](saved)
    checkpoint = make_checkpoint()
    assert checkpoint.text_encoder is not None
    expected = {
        **checkpoint.state,
        "text.embeddings": checkpoint.text_embeddings,
        "text.owner": checkpoint.text_owner,
        **{f"text_tower.{key}": value for key, value in checkpoint.text_encoder.items()},
    }
    assert set(state) == set(expected)
    assert all(np.array_equal(state[key], value.numpy()) for key, value in expected.items())
    assert json.loads(metadata["clip"]) == CLIP


def test_contract_of_the_file(saved: Path) -> None:
    with safe_open(saved, framework="np") as file:
        metadata = file.metadata()
        keys = set(file.keys())
        values = file.get_tensor(f"backbone.{MASKED[0]}.values")
    assert metadata["format"] == FORMAT == "ovstrans.checkpoint/1"
    assert set(metadata) == {*METADATA, "content_sha256"}
    assert json.loads(metadata["shapes"]) == {f"backbone.{k}": list(v.shape) for k, v in make_mask().tensors.items()}
    assert {f"backbone.{MASKED[0]}.values", f"backbone.{MASKED[0]}.bitmask", "head.weight", "text.owner"} <= keys
    assert f"backbone.{MASKED[0]}" not in keys
    assert values.shape == (int(make_mask().tensors[MASKED[0]].sum()),)


def test_equal_checkpoints_give_equal_bytes(saved: Path) -> None:
    again = saved.with_name("again.safetensors")
    save_checkpoint(again, load_checkpoint(saved))
    assert again.read_bytes() == saved.read_bytes()


def test_nine_tenths_of_zeros_take_less_than_a_fifth(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.safetensors", make_checkpoint(make_mask(density=0.1)))
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        masked = [file.get_tensor(key).nbytes for key in file.keys() if "layer1" in key and "weight." in key]  # noqa: SIM118
    assert 0 < sum(masked) < 0.2 * 4 * make_mask().total


def test_mask_not_in_force_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    checkpoint.state["backbone.layer1.0.conv1.weight"].add_(1e-8)
    with pytest.raises(MismatchError, match=r"masked weights of backbone\.layer1\.0\.conv1\.weight are not zero"):
        save_checkpoint(tmp_path / "x.safetensors", checkpoint)
    assert not list(tmp_path.iterdir())


def test_name_kept_for_text_is_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    checkpoint.state["text.owner"] = torch.ones(1)
    with pytest.raises(MismatchError, match=r"text\.owner"):
        save_checkpoint(tmp_path / "x.safetensors", checkpoint)


def test_failure_while_writing_keeps_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(tensors: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, make_checkpoint(masked=False))
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


@pytest.mark.parametrize("number", range(9))
def test_truncated(saved: Path, number: int) -> None:
    saved.write_bytes(saved.read_bytes()[: cut_points(saved)[number]])
    with pytest.raises(InputError, match=r"checkpoint\.safetensors"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "ovstrans.mask/1"}, "'ovstrans.mask/1'"),
        ({"format": None}, "None"),
        ({"framework": None}, "no 'framework'"),
        ({"provenance": None}, "no 'provenance'"),
        ({"options": "3"}, "options"),
        ({"vocabulary": "{}"}, "vocabulary"),
        ({"vocabulary": '{"name": "x", "classes": [["a"], ["b"]]}'}, "outside the 2"),
        ({"clip": '{"model": "RN50"}'}, "clip has no 'pretrained'"),
        ({"shapes": "{}"}, "no entry in shapes"),
        ({"shapes": "nothing"}, "shapes"),
        ({"mask": "[]"}, "mask"),
    ],
)
def test_bad_metadata(saved: Path, changes: dict[str, str | None], says: str) -> None:
    bad = tamper(saved, saved.with_name("bad.safetensors"), metadata=changes)
    with pytest.raises(InputError) as caught:
        load_checkpoint(bad)
    assert str(caught.value).startswith(str(bad)) and says in str(caught.value) and "\n" not in str(caught.value)


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def nan(tensors: Tensors) -> Tensors:
    tensors["head.weight"][0] = float("nan")
    return tensors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("text.embeddings"), "text.embeddings is missing"),
        (without("text.owner"), "text.owner is missing"),
        (without(f"backbone.{MASKED[0]}.values"), "values is missing"),
        (lambda t: {**t, "text.embeddings": t["text.embeddings"][0]}, "[rows, dimensions]"),
        (lambda t: {**t, "text.owner": t["text.owner"][:2]}, "text.owner has shape [2]"),
        (lambda t: {**t, "text.owner": t["text.owner"].int()}, "int64"),
        (lambda t: {**t, "text.owner": -t["text.owner"]}, "outside"),
        (lambda t: {**t, "text.embeddings": t["text.embeddings"] * float("nan")}, "text.embeddings holds NaN"),
        (nan, "head.weight holds NaN"),
    ],
)
def test_bad_tensors(saved: Path, change: Callable[[Tensors], Tensors], says: str) -> None:
    bad = tamper(saved, saved.with_name("bad.safetensors"), tensors=change)
    with pytest.raises(InputError) as caught:
        load_checkpoint(bad)
    assert str(caught.value).startswith(str(bad)) and says in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_folder_of_a_run(saved: Path) -> None:
    assert_same(load_checkpoint(saved.parent).state, load_checkpoint(saved).state)


def test_folder_without_a_checkpoint(tmp_path: Path) -> None:
    for made, says in (
        ("", "no checkpoint.safetensors in this folder"),
        ("recipe.toml", "no state to resume from"),
        ("state/state.pt", "not finished"),
    ):
        (tmp_path / made).parent.mkdir(exist_ok=True)
        if made:
            (tmp_path / made).write_text("")
        with pytest.raises(MissingFileError, match=says) as caught:
            load_checkpoint(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path}: ") and isinstance(caught.value, FileNotFoundError)


def test_repr_is_a_few_lines() -> None:
    lines = repr(make_checkpoint()).splitlines()
    assert lines[0].startswith("Checkpoint of dummy: ") and len(lines) == 5
    assert "dummy tag" in lines[1] and "480 weights are zero" in lines[2] and "street (3 classes)" in lines[3]
    assert "mask        none" in repr(make_checkpoint(masked=False, text_encoder=None))
