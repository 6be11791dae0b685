from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from ovstrans import files
from ovstrans.errors import InputError
from ovstrans.masks import file as mask_file
from ovstrans.masks.file import FORMAT, load_mask, save_mask
from ovstrans.masks.mask import Mask
from tests.masks.dummies import MASKED, cut_points, documented_code, make_mask, tamper

FIELDS = {
    "model": "RN50",
    "pretrained": "openai",
    "weights_sha256": "0" * 63 + "a",
    "method": "imp",
    "recipe": {"rate": 0.1, "scope": "body", "nested": {"é": [1, None]}},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_mask(tmp_path / "mask.safetensors", make_mask(**FIELDS))
    return tmp_path / "mask.safetensors"


def test_round_trip(saved: Path) -> None:
    mask = load_mask(saved)
    assert list(mask.tensors) == list(MASKED)
    assert all(torch.equal(mask.tensors[key], kept) for key, kept in make_mask().tensors.items())
    assert {key: getattr(mask, key) for key in FIELDS} == FIELDS
    assert mask.path == str(saved) and mask.created_by == make_mask().created_by


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.dictionaries(
        st.from_regex(r"layer[1-4]\.[0-9]\.conv[1-3]\.weight", fullmatch=True),
        st.lists(st.integers(1, 4), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    ),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_mask_survives(tmp_path: Path, shapes: dict[str, list[int]], density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = Mask({key: torch.rand(shape, generator=generator) < density for key, shape in shapes.items()}, model="m")
    save_mask(tmp_path / "a.safetensors", mask)
    again = load_mask(tmp_path / "a.safetensors")
    assert again.shapes == mask.shapes and again.sparsity == mask.sparsity
    assert all(torch.equal(again.tensors[key], kept) for key, kept in mask.tensors.items())
    save_mask(tmp_path / "b.safetensors", again)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_documented_code_reads_it(saved: Path) -> None:
    code = documented_code(mask_file.__doc__ or "")
    assert len(code.splitlines()) <= 20
    names: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {}
    exec(code, names)
    read = names["read_mask"](saved)
    assert {key: value.tolist() for key, value in read.items()} == {
        key: kept.tolist() for key, kept in make_mask().tensors.items()
    }


def test_contract_of_the_file(saved: Path) -> None:
    with safe_open(saved, framework="np") as file:
        metadata = file.metadata()
        bits = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert metadata["format"] == FORMAT == "ovstrans.mask/1"
    assert set(metadata) == {"format", "created_by", "shapes", "sparsity", "content_sha256", *FIELDS}
    assert json.loads(metadata["shapes"])[MASKED[0]] == [6, 4, 3, 3]
    assert json.loads(metadata["recipe"]) == FIELDS["recipe"]
    ones = sum(np.unpackbits(value).sum() for value in bits.values())
    weights = sum(np.prod(shape) for shape in json.loads(metadata["shapes"]).values())
    assert float(metadata["sparsity"]) == (weights - ones) / weights
    assert all(value.dtype == np.uint8 and value.ndim == 1 for value in bits.values())
    kept = make_mask().tensors[MASKED[1]]
    assert bits[MASKED[1]].tolist() == np.packbits(kept.numpy().ravel()).tolist()


def test_rn50_takes_at_most_3_1_megabytes(tmp_path: Path) -> None:
    from ovstrans.clip.layers import scope_layers
    from ovstrans.clip.load import create_image_encoder

    with torch.device("meta"):
        convs = scope_layers(create_image_encoder("RN50"))
    generator = torch.Generator().manual_seed(0)
    mask = Mask(
        {f"{name}.weight": torch.rand(conv.shape, generator=generator) < 0.1 for name, conv in convs.items()},
        model="RN50",
    )
    assert mask.total == 23_445_504  # 52 tensors of layer1 to layer4
    save_mask(tmp_path / "mask.safetensors", mask)
    assert 23_445_504 / 8 < (tmp_path / "mask.safetensors").stat().st_size <= 3.1e6


@pytest.mark.parametrize("number", range(9))
def test_truncated(saved: Path, number: int) -> None:
    saved.write_bytes(saved.read_bytes()[: cut_points(saved)[number]])
    with pytest.raises(InputError, match=r"mask\.safetensors"):
        load_mask(saved)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "ovstrans.mask/2"}, "'ovstrans.mask/2'"),
        ({"format": None}, "no format entry"),
        ({"shapes": None}, "no 'shapes'"),
        ({"weights_sha256": None}, "no 'weights_sha256'"),
        ({"created_by": None}, "no 'created_by'"),
        ({"shapes": "[1]"}, "shapes"),
        ({"shapes": "{}"}, "has no entry in shapes"),
        ({"shapes": json.dumps({MASKED[0]: [6, 4, 3, "3"]})}, MASKED[0]),
        ({"recipe": "{"}, "recipe"),
        ({"weights_sha256": "XYZ"}, "'XYZ'"),
        ({"sparsity": "0.5"}, "sparsity says 0.5"),
        ({"sparsity": "nan"}, "sparsity says nan"),
        ({"sparsity": "most"}, "not a number"),
    ],
)
def test_bad_metadata(saved: Path, changes: dict[str, str | None], says: str) -> None:
    bad = tamper(saved, saved.with_name("bad.safetensors"), metadata=changes)
    with pytest.raises(InputError) as caught:
        load_mask(bad)
    assert str(caught.value).startswith(str(bad)) and says in str(caught.value) and "\n" not in str(caught.value)


def test_bad_tensors(saved: Path) -> None:
    def flipped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[MASKED[0]][3] ^= 0b100  # one bit: the count no longer agrees
        return tensors

    changes: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
        "sparsity says": flipped,
        f"{MASKED[1]}, which has no bits": lambda t: {k: v for k, v in t.items() if k != MASKED[1]},
        "extra has no entry": lambda t: {**t, "extra": torch.zeros(1, dtype=torch.uint8)},
        f"{MASKED[0]}: holds float32": lambda t: {**t, MASKED[0]: t[MASKED[0]].float()},
        f"{MASKED[2]}: 26 bytes": lambda t: {**t, MASKED[2]: t[MASKED[2]][:-1]},
        f"{MASKED[3]}: holds uint8 [1, 3]": lambda t: {**t, MASKED[3]: t[MASKED[3]][None]},
    }
    for says, change in changes.items():
        bad = tamper(saved, saved.with_name("bad.safetensors"), tensors=change)
        with pytest.raises(InputError) as caught:
            load_mask(bad)
        assert str(bad) in str(caught.value) and says in str(caught.value)


def test_rounded_sparsity_of_another_writer_is_accepted(saved: Path) -> None:
    mask = load_mask(saved)
    rounded = f"{mask.sparsity:.4f}"
    assert float(rounded) != mask.sparsity
    load_mask(tamper(saved, saved.with_name("other.safetensors"), metadata={"sparsity": rounded}))


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_mask(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is no mask at all")
    with pytest.raises(InputError, match="not an intact safetensors"):
        load_mask(tmp_path / "text.safetensors")
    with pytest.raises(InputError, match="folder"):
        load_mask(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    files.write_tensors(foreign, {"layer1.0.conv1.weight_mask": torch.ones(2)}, {"a": "b"})
    assert load_mask(foreign).method == "imported"


def test_failure_while_writing_keeps_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(tensors: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(InputError, match="No space left"):
        save_mask(saved, make_mask(density=0.9))
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_mask(tmp_path / "file" / "mask.safetensors", make_mask())
