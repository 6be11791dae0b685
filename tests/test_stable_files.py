"""Files of earlier versions are read as then, and equal objects still give equal bytes (see tests/data/README.md)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import ovstrans
from ovstrans import files
from ovstrans.checkpoints.file import save_checkpoint
from ovstrans.clip.weights import read_state_dict, weights_sha256
from ovstrans.masks.file import save_mask, save_weights
from ovstrans.masks.mask import CREATED_BY
from ovstrans.spectrum.file import load_analysis, save_analysis
from tests.checkpoints.dummies import make_checkpoint
from tests.masks.dummies import Encoder, make_mask

DATA = Path(__file__).parent / "data"
OLD = "ovstrans 0.1.0"
HASHES = {
    "alpha.json": "70be668fcfcdb3be69330c781024234f3052f8ce570c95e1f5a079f7f1f4407f",
    "checkpoint.safetensors": "c802073fe8fe58d0c07c9cfa5b44217fe1eb1d6b5850b37abdfcc78dcd15b53c",
    "mask.safetensors": "557b464bb3bf9a9615b62e24731dab290b365b1140dad62aabc53065b764ddb0",
    "mask.weights.safetensors": "dddfe55ee367774808c5cc625731dbebe37777126b3c48bb35b74ecfe42e5922",
    "report.json": "8933d19adf3f2dc1cd853a7824f14a407f153a7edba390d7313b3b0fbcae0058",
}
FIELDS = {"method": "imp", "pretrained": "tag", "weights_sha256": "c" * 64, "recipe": {"rate": 0.1}}


def same_but_for_the_content_hash(path: Path, before: Path) -> bool:
    """Whether two files are equal but for `content_sha256`, which files of before do not have."""
    (tensors, metadata), (old_tensors, old_metadata) = files.read_tensors(path), files.read_tensors(before)
    same = tensors.keys() == old_tensors.keys() and weights_sha256(tensors) == weights_sha256(old_tensors)
    return same and metadata == old_metadata and bool(files.content_is_intact(path))


def test_mask(tmp_path: Path) -> None:
    mask = ovstrans.load_mask(DATA / "mask.safetensors")
    assert (mask.kept, mask.total, len(mask.tensors)) == (139, 480, 4)
    assert mask == make_mask(**FIELDS, created_by=OLD)
    save_mask(tmp_path / "mask.safetensors", make_mask(**FIELDS, created_by=OLD))
    assert same_but_for_the_content_hash(tmp_path / "mask.safetensors", DATA / "mask.safetensors")


def test_pruned_weights(tmp_path: Path) -> None:
    path = DATA / "mask.weights.safetensors"
    state = read_state_dict(path)
    assert weights_sha256(state) == "800a3d241ae00e7c9298daa899444d4abb1da831455a0b250c6d520b481a21fb"
    assert ovstrans.load_mask(DATA / "mask.safetensors").violations(state) == []
    encoder = Encoder()
    encoder.load_state_dict(state)
    metadata = files.read_metadata(path)
    assert metadata["format"] == "ovstrans.weights/1" and metadata["mask"] == "mask.safetensors"
    mask = make_mask(**FIELDS, created_by=OLD)
    save_weights(tmp_path / "again.safetensors", encoder.state_dict(), mask, "mask.safetensors")
    assert same_but_for_the_content_hash(tmp_path / "again.safetensors", path)
    found = ovstrans.inspect(path, verify=True)
    assert "no content hash, as files of earlier versions have none" in found.checks
    assert found.kind == "pruned weights" and "zero under mask.safetensors" in found.checks


def test_checkpoint(tmp_path: Path) -> None:
    checkpoint = ovstrans.load_checkpoint(DATA / "checkpoint.safetensors")
    assert (checkpoint.framework, checkpoint.options) == ("dummy", {"output_stride": 16})
    assert checkpoint.vocabulary.names == ("sky", "car", "person") and checkpoint.text_owner.tolist() == [0, 1, 1, 2]
    assert weights_sha256(checkpoint.state) == "0192dcf842b99fac7e69df4ec1b4cd439b1a696484f10c0acfb69f9300540624"
    assert checkpoint.mask is not None and checkpoint.mask == make_mask(**FIELDS, created_by=OLD)
    assert checkpoint.text_encoder is not None and list(checkpoint.text_encoder) == ["token_embedding.weight"]
    for number, again in enumerate((checkpoint, make_checkpoint(make_mask(**FIELDS, created_by=OLD), created_by=OLD))):
        save_checkpoint(tmp_path / f"{number}.safetensors", again)
        assert same_but_for_the_content_hash(tmp_path / f"{number}.safetensors", DATA / "checkpoint.safetensors")


def test_alpha_file(tmp_path: Path) -> None:
    analysis = load_analysis(DATA / "alpha.json")
    assert (analysis.model, analysis.pretrained, len(analysis.layers)) == ("RN-mini", "bundled", 41)
    layer = next(layer for layer in analysis.layers if layer.name == "layer1.0.conv1")
    assert (layer.shape, layer.alpha, layer.xmin, layer.n_tail) == (
        (24, 24, 1, 1),
        3.439772688741586,
        0.21625063076906342,
        8,
    )
    plan = analysis.plan()
    assert (plan.rule, plan.threshold, len(plan.frozen)) == ("median", 2.4583062647058522, 18)
    save_analysis(tmp_path / "alpha.json", analysis)
    again, before = (json.loads((folder / "alpha.json").read_text()) for folder in (tmp_path, DATA))
    assert again == {**before, "created_by": CREATED_BY}
    assert "plan follows from the alphas" in ovstrans.inspect(DATA / "alpha.json", verify=True).checks


def test_report() -> None:
    found = ovstrans.inspect(DATA / "report.json")
    assert found.facts["targets"] == ["run"] and found.facts["datasets"] == ["scenes:val"]
    values = {row[0]: row[2] for row in found.rows}
    assert values["params"] == 4_350_037 and values["effective MACs"] == 286_307_252
    assert values["scenes:val mIoU"] == 26.81086506130299


@pytest.mark.parametrize("name", HASHES)
def test_they_are_the_files_of_then(name: str) -> None:
    assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == HASHES[name]


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 1.5e6
