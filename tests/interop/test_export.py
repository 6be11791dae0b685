"""What is exported loads where it is meant to: in open_clip, in the published code, in ovstrans again."""

from __future__ import annotations

import collections
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ovstrans import files
from ovstrans.checkpoints.file import Checkpoint, save_checkpoint
from ovstrans.clip.backbone import encode_stages
from ovstrans.clip.layers import scope_layers
from ovstrans.clip.load import Clip, load_clip, random_clip
from ovstrans.clip.models import bundled_folder
from ovstrans.clip.weights import read_weight_file
from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.loading import stream_batches
from ovstrans.datasets.scenes.dataset import Scenes
from ovstrans.errors import InputError, MismatchError
from ovstrans.interop import export as export_module
from ovstrans.interop.export import ExportResult, check_suffix, export
from ovstrans.interop.import_clip import MaskedClip, clip_from_weights, clip_of_mask, open_clip_name
from ovstrans.interop.import_mask import find_mask, mask_of_pruned_weights, split_mask
from ovstrans.interop.origin import parse_origin, recorded_mask
from ovstrans.masks.mask import Mask
from tests.checkpoints.dummies import make_checkpoint
from tests.masks.dummies import CLIP, make_mask


def draw_mask(clip: Clip, density: float = 0.1, **fields: Any) -> Mask:
    """A random mask of a CLIP's body."""
    generator = torch.Generator().manual_seed(3)
    shapes = {f"{name}.weight": conv.shape for name, conv in scope_layers(clip.visual).items()}
    tensors = {key: torch.rand(shape, generator=generator) < density for key, shape in shapes.items()}
    return Mask(tensors, model=clip.name, method="random", **fields)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a whole CLIP, drawn at random: what a user downloaded."""
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    files.write_tensors(path, random_clip(seed=4).model.state_dict(), {})
    return path


@pytest.fixture
def pruned(clip_file: Path) -> MaskedClip:
    clip = random_clip(seed=4)
    return clip_of_mask(draw_mask(clip, pretrained=str(clip_file), weights_sha256=clip.weights_sha256))


def write(path: Path, content: MaskedClip | Checkpoint, format: str, like: str | None = None) -> ExportResult:
    if isinstance(content, MaskedClip):
        return export(content.clip, path, format=format, like=like, mask=content.mask, force=True)
    return export(content, path, format=format, like=like, force=True)


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(wanted)
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


def load_by_open_clip(path: Path, folder: Path) -> Any:
    """The bundled model's architecture, from its own configuration, with an exported file's weights."""
    folder.mkdir()
    shutil.copy(bundled_folder() / "open_clip_config.json", folder)
    shutil.copy(path, folder / f"open_clip_model{path.suffix}")
    return open_clip.create_model(f"local-dir:{folder}").eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_pruned_clip_loads_in_open_clip(tmp_path: Path, pruned: MaskedClip, suffix: str) -> None:
    path = tmp_path / f"pruned{suffix}"
    told = write(path, pruned, "dense")
    loaded = load_by_open_clip(path, tmp_path / "folder")
    assert_equal(loaded.state_dict(), dict(pruned.clip.model.state_dict()))
    side = pruned.clip.image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    words = pruned.clip.tokenizer(["a red disc", "a ring"])
    with torch.inference_mode():
        ours, theirs = pruned.clip.model(images, words), loaded(images, words)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert pruned.mask is not None and pruned.mask.violations(loaded) == []
    assert told.nonzero < told.values and told.sparsity == pruned.mask.sparsity
    assert told.tensors == len(loaded.state_dict())


def test_equal_exports_are_equal_bytes(tmp_path: Path, pruned: MaskedClip) -> None:
    for suffix in (".safetensors", ".pth"):
        for kind in ("dense", "detectron2"):
            first, second = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
            write(first, pruned, kind)
            write(second, pruned, kind)
            assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("kind", "like", "key"),
    [
        ("dense", None, "visual.layer1.0.conv1.weight"),
        ("detectron2", None, "backbone.clip_model.visual.layer1.0.conv1.weight"),
        ("detectron2", "fcclip", "backbone.clip_model.visual.layer1.0.conv1.weight"),
        ("detectron2", "gkc", "backbone.layer1.0.conv1.weight"),
    ],
)
def test_clip_comes_back(
    tmp_path: Path, clip_file: Path, pruned: MaskedClip, kind: str, like: str | None, key: str, suffix: str
) -> None:
    path = tmp_path / f"out{suffix}"
    write(path, pruned, kind, like)
    external = read_weight_file(path)
    assert key in external.state
    texts = [name for name in external.state if name.endswith("token_embedding.weight")]
    assert texts == ([] if like == "gkc" else [key.partition("visual.")[0] + "token_embedding.weight"])

    about = parse_origin(external.origin, "file")
    mask = recorded_mask(about, external.state, "file")
    assert mask is not None and pruned.mask is not None and mask.method == "random"
    assert all(torch.equal(mask.tensors[name], kept) for name, kept in pruned.mask.tensors.items())
    assert mask.weights_sha256 == pruned.mask.weights_sha256 and about["clip"]["model"] == "RN-mini"

    back = clip_from_weights(external.state, "file", model="RN-mini", pretrained=str(clip_file), mask=mask)
    assert_equal(dict(back.clip.model.state_dict()), dict(pruned.clip.model.state_dict()))
    assert back.fit is not None and back.fit.unexpected == ()
    assert len(back.fit.missing) == (0 if like != "gkc" else 42)


class PublishedHead(nn.Module):
    """Mask2Former's head, as far as loading goes: names of a state without a version are taken for old ones."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.pixel_decoder = nn.Linear(2, 2)
        self.predictor = nn.Linear(2, 2)

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version") is None or metadata["version"] < 2:
            for key in [key for key in state if key.startswith(prefix) and not key.startswith(f"{prefix}predictor")]:
                state[f"{prefix}pixel_decoder.{key.removeprefix(prefix)}"] = state.pop(key)
        super()._load_from_state_dict(state, prefix, metadata, *rest)  # type: ignore[no-untyped-call]


class Published(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sem_seg_head = PublishedHead()


def test_published_head_takes_the_pixel_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {key: value.clone() for key, value in Published().state_dict().items()}
    renamer: Callable[[Any], Any] = lambda state: theirs  # noqa: E731
    monkeypatch.setattr(export_module, "to_published", lambda framework: renamer)
    write(tmp_path / "m.pth", make_checkpoint(framework="gkc"), "detectron2")
    saved = torch.load(tmp_path / "m.pth", weights_only=True)
    assert set(saved) == {"model", "ovstrans"} and isinstance(saved["model"], collections.OrderedDict)
    model = Published()
    rest = Checkpointer(model, save_to_disk=False).load(str(tmp_path / "m.pth"))  # what detectron2's derives from
    assert_equal(dict(model.state_dict()), theirs)
    assert json.loads(rest["ovstrans"])["names"] == "gkc"
    assert Published().load_state_dict(dict(saved["model"]), strict=False).missing_keys, "the trap is no trap"


def test_checkpoint_as_dense(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    assert checkpoint.mask is not None
    told = write(tmp_path / "m.safetensors", checkpoint, "dense")
    found = load_file(tmp_path / "m.safetensors")
    assert_equal(found, checkpoint.state)
    assert (found["backbone.layer1.0.conv1.weight"][~checkpoint.mask.tensors["layer1.0.conv1.weight"]] == 0).all()
    with safe_open(tmp_path / "m.safetensors", framework="np") as file:
        about = json.loads(file.metadata()["ovstrans"])
    assert about["names"] == "ovstrans" and about["framework"] == "dummy" and about["mask"]["method"] == "imp"
    assert about["vocabulary"]["classes"][1] == ["car", "automobile"] and about["options"] == {"output_stride": 16}
    assert told.framework == "dummy" and told.values == sum(value.numel() for value in found.values())
    write(tmp_path / "m.pth", checkpoint, "dense")
    assert_equal(torch.load(tmp_path / "m.pth", weights_only=True)["state_dict"], checkpoint.state)


def test_backbone_of_a_framework_without_published_names(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    with pytest.raises(InputError, match="dummy has no published names; `like` .* fcclip or gkc"):
        write(tmp_path / "m.pth", checkpoint, "detectron2")
    assert not list(tmp_path.iterdir())
    write(tmp_path / "m.pth", checkpoint, "detectron2", "fcclip")
    trunk = {key: value for key, value in checkpoint.state.items() if key.startswith("backbone.")}
    found = read_weight_file(tmp_path / "m.pth").state
    assert_equal(found, {key.replace("backbone.", "backbone.clip_model.visual."): trunk[key] for key in trunk})


@pytest.mark.parametrize(
    ("kind", "like", "says"),
    [("sparse", None, "this is a CLIP alone"), ("detectron2", "mmseg", "`like=mmseg`: unknown; use fcclip or gkc")],
)
def test_what_a_clip_cannot_be(tmp_path: Path, pruned: MaskedClip, kind: str, like: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        write(tmp_path / f"m{'.safetensors' if kind == 'sparse' else '.pth'}", pruned, kind, like)
    assert not list(tmp_path.iterdir())


def test_a_framework_has_its_own_names_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`like=gkc`: this is a fcclip"):
        write(tmp_path / "m.pth", make_checkpoint(framework="fcclip"), "detectron2", "gkc")


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("m.safetensors", "onnx", "`format=onnx`: unknown; use dense, sparse, detectron2, mask"),
        ("m.pkl", "detectron2", "ends in .pth or .pt or .safetensors"),
        ("m.pth", "mask", "ends in .safetensors"),
        ("m", "dense", "ends in"),
    ],
)
def test_names_of_files(name: str, kind: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_suffix(name, kind)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "a JSON object is needed"),
        ('{"format": "ovstrans.origin/9"}', "which this version of ovstrans does not know"),
        ('{"format": "ovstrans.origin/1"}', "clip has no 'model'"),
        ('{"format": "ovstrans.origin/1", "clip": {"model": "RN50"}}', "clip has no 'pretrained'"),
        ('{"format": "ovstrans.origin/1", "options": []}', "options is not an object"),
    ],
)
def test_damaged_origin(text: str, says: str) -> None:
    with pytest.raises(InputError, match=f"file: .*{says}"):
        parse_origin(text, "file")
    assert parse_origin("", "file") == {}


def test_recorded_mask_needs_its_tensors() -> None:
    with pytest.raises(InputError, match="file: its mask is about layer1.0.conv1.weight, which is missing"):
        recorded_mask({"mask": {"tensors": ["layer1.0.conv1.weight"]}}, {}, "file")
    assert recorded_mask({"mask": None}, {}, "file") is None and recorded_mask({}, {}, "file") is None


def test_opentrans_backbone_becomes_a_whole_clip(clip_file: Path) -> None:
    """A trunk under torch's pruning, without the attention pool, beside a head: what OpenTrans saves."""
    clip = random_clip(seed=5)
    mask = draw_mask(clip)
    state: dict[str, Tensor] = {"sem_seg_head.predictor.class_embed.weight": torch.ones(3)}
    for key, value in clip.visual.state_dict().items():
        if key in mask.tensors:
            state[f"backbone.{key}_orig"], state[f"backbone.{key}_mask"] = value, mask.tensors[key].float()
        elif not key.startswith("attnpool."):
            state[f"backbone.{key}"] = value
    weights, own = split_mask(state, "imp21.pth", model="RN-mini", pretrained="", body_only=True)
    assert own is not None and own.method == "imported" and not any(key.endswith("_mask") for key in weights)
    assert_masks_equal(own, mask)
    found = clip_from_weights(weights, "imp21.pth", model="RN-mini", pretrained=str(clip_file), mask=own)
    assert found.fit is not None
    assert found.fit.unexpected == ("sem_seg_head.predictor.class_embed.weight",)
    assert all(not key.startswith("visual.") or "attnpool" in key for key in found.fit.missing)
    mask.apply(clip.visual)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(encode_stages(found.clip.visual, images)["res5"], encode_stages(clip.visual, images)["res5"])
    original = files.read_tensors(clip_file)[0]
    for key in ("visual.attnpool.positional_embedding", "token_embedding.weight"):
        assert torch.equal(found.state[key], original[key])
    assert found.mask is own and own.violations(found.clip.model) == []
    assert split_mask(weights, "file", model="RN-mini", pretrained="", body_only=True)[1] is None


def assert_masks_equal(found: Mask, wanted: Mask) -> None:
    assert list(found.tensors) == list(wanted.tensors)
    assert all(torch.equal(found.tensors[key], kept) for key, kept in wanted.tensors.items())


def test_what_does_not_fit_a_clip(clip_file: Path) -> None:
    state = dict(random_clip().visual.state_dict())
    narrow = {**state, "layer1.0.conv1.weight": torch.ones(1, 1, 1, 1)}
    with pytest.raises(MismatchError, match=r"file: visual.layer1.0.conv1.weight has shape \[1, 1, 1, 1\], .* `model`"):
        clip_from_weights(narrow, "file", model="RN-mini", pretrained=str(clip_file))
    del state["layer2.0.conv1.weight"]
    with pytest.raises(MismatchError, match=r"file: lacks 1 entry \(visual.layer2.0.conv1.weight\)"):
        clip_from_weights(state, "file", model="RN-mini", pretrained=str(clip_file))
    found = clip_from_weights(state, "file", model="RN-mini", pretrained=str(clip_file), partial=True)
    original = files.read_tensors(clip_file)[0]["visual.layer2.0.conv1.weight"]
    assert torch.equal(found.encoder["layer2.0.conv1.weight"], original)
    with pytest.raises(InputError, match="file: .*layer1.0.conv1.weight holds 1 values that are NaN"):
        state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].clone()
        state["layer1.0.conv1.weight"].view(-1)[0] = float("nan")
        clip_from_weights(state, "file", model="RN-mini", pretrained=str(clip_file), partial=True)


def test_mask_for_another_model_is_refused() -> None:
    entries = {f"{key}_mask": kept for key, kept in make_mask().tensors.items()}
    with pytest.raises(MismatchError, match="file: masks layer1.0.conv1.weight of shape .* `model`"):
        find_mask(entries, "file", model="RN50", pretrained="openai", body_only=True)


def test_a_clip_without_its_text_is_refused(tmp_path: Path, pruned: MaskedClip) -> None:
    files.write_tensors(tmp_path / "encoder.safetensors", pruned.encoder, {})
    with pytest.raises(InputError, match="encoder.safetensors: holds the image encoder only"):
        clip_of_mask(draw_mask(pruned.clip), "RN-mini", str(tmp_path / "encoder.safetensors"))


def test_a_mask_on_other_weights_is_a_transfer(clip_file: Path, pruned: MaskedClip) -> None:
    assert not pruned.transferred
    assert clip_of_mask(draw_mask(pruned.clip), "RN-mini", str(clip_file)).transferred
    assert set(pruned.metadata()) >= {"model", "pretrained", "weights_sha256", "method", "sparsity"}


def test_mask_of_our_pruned_weights(pruned: MaskedClip) -> None:
    assert pruned.mask is not None
    metadata = {"format": "ovstrans.weights/1", "method": "imp", "model": "RN-mini", "recipe": '{"rate": 0.1}'}
    found = mask_of_pruned_weights(metadata, pruned.encoder, "file")
    assert found is not None and (found.method, found.recipe) == ("imp", {"rate": 0.1})
    assert_masks_equal(found, pruned.mask)
    assert mask_of_pruned_weights({"format": "pt"}, CLIP().state_dict(), "file") is None


def test_name_that_builds_the_same_text_encoder() -> None:
    assert open_clip_name("RN50", "openai") == "RN50-quickgelu"
    assert open_clip_name("RN50-quickgelu", "openai") == "RN50-quickgelu"
    assert open_clip_name("RN50", "weights.pt") == "RN50" and open_clip_name("RN-mini", "bundled") == "RN-mini"


@pytest.mark.parametrize("format", ["dense", "detectron2"])
def test_tensors_without_a_file_share_no_memory(format: str) -> None:
    clip, checkpoint = random_clip(seed=4), make_checkpoint(framework="dummy")
    for source, model in ((clip, clip.model.state_dict()), (checkpoint, checkpoint.state)):
        like = "gkc" if format == "detectron2" else None
        result = export(source, format=format, like=like)
        assert result.out is None and result.bytes == 0 and result.state
        assert result.tensors == len(result.state)
        before = {key: value.clone() for key, value in model.items()}
        for value in result.state.values():
            value.zero_()
        assert all(torch.equal(value, before[key]) for key, value in model.items())


def test_the_clip_that_is_exported_stays_dense(tmp_path: Path) -> None:
    clip = random_clip(seed=4)
    mask = draw_mask(clip)
    result = export(clip, tmp_path / "m.safetensors", mask=mask)
    assert mask.violations(clip.model) and mask.violations(load_file(tmp_path / "m.safetensors")) == []
    assert result.sparsity == mask.sparsity and result.source == "Clip"
    assert "transferred" in result.notes[0] and export(clip, tmp_path / "n.safetensors").sparsity is None


def test_torch_files_hold_no_more_than_their_tensors(tmp_path: Path) -> None:
    whole = torch.randn(100_000)
    checkpoint = make_checkpoint(masked=False)
    checkpoint.state["view"] = whole[:10]
    export(checkpoint, tmp_path / "m.pth")
    assert (tmp_path / "m.pth").stat().st_size < 100_000


def test_sources(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    save_checkpoint(tmp_path / "checkpoint.safetensors", checkpoint)

    class Run:
        path = tmp_path

    for source in (tmp_path, str(tmp_path), tmp_path / "checkpoint.safetensors", Run(), checkpoint):
        state = export(source).state
        assert state is not None
        assert_equal(state, checkpoint.state)
    with pytest.raises(InputError, match="`source`: a int cannot be exported"):
        export(3)
    with pytest.raises(InputError, match="`format=mask`: is a file; give `out`"):
        export(checkpoint, format="mask")
    with pytest.raises(InputError, match="`framework`: the Checkpoint says this by itself"):
        export(checkpoint, framework="gkc")
    with pytest.raises(InputError, match="is the source; give another name"):
        export(tmp_path, tmp_path / "checkpoint.safetensors", format="sparse", force=True)


def test_result_is_readable(tmp_path: Path) -> None:
    result = export(make_checkpoint(), tmp_path / "m.safetensors")
    assert repr(result).splitlines()[0] == f"{tmp_path / 'm.safetensors'}: dense" and len(repr(result)) < 400
    plain = json.loads(json.dumps(result.to_json()))
    assert plain["schema"] == "ovstrans.export/1" and plain["framework"] == "dummy" and plain["missing"] == []


def statistics(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if "running_" in key and key.startswith("visual.")}


def exported(*arguments: Any, **options: Any) -> tuple[dict[str, Tensor], str]:
    result = export(*arguments, **options)
    assert result.state is not None
    return result.state, " ".join(result.notes)


def test_statistics_of_a_mask_on_bundled_weights_are_recomputed() -> None:
    """By hand: the same images through the masked encoder in train mode, which normalises by the batch too."""
    clip = load_clip("RN-mini")
    mask = draw_mask(clip, weights_sha256=clip.weights_sha256, pretrained=clip.pretrained)
    plain, _ = exported(mask, bn_recalibrate=0)
    found, told = exported(mask, bn_recalibrate=1, seed=3)
    assert "recomputed on 32 images of scenes:unlabelled" in told
    assert_equal(statistics(plain), statistics(clip.model.state_dict()))
    assert {key for key, value in found.items() if not torch.equal(value, plain[key])} == {
        key
        for key in found
        if key.startswith("visual.") and key.rpartition(".")[2].startswith(("running_", "num_batches"))
    }
    images = open_dataset("scenes", split="unlabelled", size=clip.image_size, labels=False)
    batch = next(stream_batches(images, batch_size=32, seed=3)).images
    mask.apply(clip.model)
    for module in clip.visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    clip.visual.train()
    with torch.no_grad():
        clip.visual((batch - torch.tensor(clip.mean).view(3, 1, 1)) / torch.tensor(clip.std).view(3, 1, 1))
    for key, value in statistics(clip.model.state_dict()).items():
        assert torch.allclose(found[key], value, rtol=1e-3, atol=1e-4), key


def test_statistics_of_other_weights_are_recomputed_on_images_that_are_named(pruned: MaskedClip) -> None:
    clip = random_clip(seed=4)
    mask = draw_mask(clip)
    dense = statistics(clip.model.state_dict())
    kept, told = exported(clip, mask=mask)
    assert_equal(statistics(kept), dense)
    assert "those of the dense weights; `data=folder:PATH` recomputes them" in told
    found, told = exported(clip, mask=mask, data=Scenes("val", size=80, length=20), bn_recalibrate=3)
    assert "recomputed on 20 images of scenes:val" in told and not mask.violations(found)
    assert not any(torch.equal(value, dense[key]) for key, value in statistics(found).items())
    assert_equal(statistics(clip.model.state_dict()), dense)  # the source stays as it is
    trained, told = exported(pruned.clip, mask=pruned.mask, data="scenes")
    assert "`data` is not used: no mask zeroes any of these weights" in told
    assert_equal(statistics(trained), statistics(pruned.clip.model.state_dict()))


def test_images_that_would_serve_nothing_are_refused(tmp_path: Path, pruned: MaskedClip) -> None:
    with pytest.raises(InputError, match="`data`: is for BatchNorm statistics, which `format=mask` leaves"):
        export(pruned.clip, tmp_path / "m.safetensors", format="mask", data="scenes")
    with pytest.raises(InputError, match="`bn_recalibrate=0` leaves as they are"):
        export(pruned.clip, data="scenes", bn_recalibrate=0)
    with pytest.raises(InputError, match="`bn_recalibrate=-1`: must be a number of batches"):
        export(pruned.clip, bn_recalibrate=-1)
    with pytest.raises(InputError, match="`data`: is for the BatchNorm statistics of a CLIP under a mask"):
        export(make_checkpoint(), data="scenes")
