"""Checkpoints of published code, and our own exports, brought in."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ovstrans import files
from ovstrans.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from ovstrans.clip.load import Clip
from ovstrans.clip.text import embed_vocabulary
from ovstrans.clip.weights import VISUAL, read_weight_file
from ovstrans.errors import InputError, MismatchError
from ovstrans.frameworks import registry
from ovstrans.frameworks.registry import with_prompts
from ovstrans.interop.export import export
from ovstrans.interop.import_framework import embed_classes, head_options, import_checkpoint
from ovstrans.interop.published_names import from_published, published_frameworks, to_published
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.interop.test_export import assert_masks_equal, draw_mask

HEAD: dict[str, Any] = {
    "queries": 5,
    "width": 32,
    "heads": 4,
    "encoder_layers": 2,
    "encoder_ffn": 24,
    "decoder_layers": 3,
    "decoder_ffn": 40,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "deeplabv3": {"width": 8, "output_stride": 32},
    "fcclip": {**HEAD, "alpha": 0.25},
    "gkc": {**HEAD, "distill": "vision-guided"},
}


@pytest.fixture
def checkpoints(clip: Clip, vocabulary: Vocabulary) -> dict[str, Checkpoint]:
    """One of every framework, every value its own, under a mask."""
    return {name: make(name, clip, vocabulary) for name in OPTIONS}


def make(name: str, clip: Clip, vocabulary: Vocabulary, **options: Any) -> Checkpoint:
    text = embed_vocabulary(clip, with_prompts(vocabulary, name, {}), cache=False)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        framework = registry.build(
            name, encoder=clip.visual, mean=clip.mean, std=clip.std, text=text, options={**OPTIONS[name], **options}
        )
        state = {
            key: torch.randn(value.shape) if value.is_floating_point() else value
            for key, value in framework.state_dict().items()
        }
    mask = draw_mask(clip)
    mask.apply(state)
    return Checkpoint(
        framework=name,
        options=framework.options,
        state=state,
        mask=mask,
        text_embeddings=text.embeddings,
        text_owner=text.owner,
        vocabulary=text.vocabulary,
        clip=clip.describe(),
        recipe={"training": {"steps": 3}},
        provenance={"data": "toy"},
        text_encoder={key: value for key, value in clip.model.state_dict().items() if not key.startswith(VISUAL)},
    )


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(wanted)
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


def test_every_framework_is_tried_here() -> None:
    assert sorted([*OPTIONS, "deop"]) == registry.list_frameworks()  # deop: test_export_deop


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "dense") for name in OPTIONS), *((name, "detectron2") for name in published_frameworks())],
)
def test_export_and_import_is_the_same_to_the_bit(
    tmp_path: Path, checkpoints: dict[str, Checkpoint], name: str, kind: str, suffix: str
) -> None:
    ours, path = checkpoints[name], tmp_path / f"out{suffix}"
    export(ours, path, format=kind)
    back, imported = import_checkpoint(read_weight_file(path), mask=ours.mask)
    assert_equal(back.state, ours.state)
    assert (imported.missing, imported.unexpected) == ((), ())
    assert (back.options, back.clip, back.recipe) == (ours.options, ours.clip, ours.recipe)
    assert back.vocabulary == ours.vocabulary and back.provenance == {"data": "toy", "imported": path.name}
    if kind == "detectron2":
        assert ours.text_encoder is not None and back.text_encoder is not None
        assert_equal(back.text_encoder, ours.text_encoder)
        back = embed_classes(back)
        assert torch.equal(back.text_embeddings, ours.text_embeddings) and torch.equal(back.text_owner, ours.text_owner)
        save_checkpoint(tmp_path / "sparse.safetensors", back)
        again = load_checkpoint(tmp_path / "sparse.safetensors")
        assert again.mask is not None and ours.mask is not None
        assert_masks_equal(again.mask, ours.mask)
        registry.restore(again)


@pytest.mark.parametrize("name", published_frameworks())
def test_published_checkpoint(tmp_path: Path, checkpoints: dict[str, Checkpoint], name: str) -> None:
    """A file as the published code leaves it: no word of ours in it, an optimizer beside the model."""
    ours = checkpoints[name]
    text = {f"text_tower.{key}": value for key, value in (ours.text_encoder or {}).items()}
    theirs = {**to_published(name)({**ours.state, **text}), "criterion.empty_weight": torch.ones(5)}
    torch.save({"model": theirs, "optimizer": {"state": {}}, "iteration": 9}, tmp_path / "model_final.pth")
    found = read_weight_file(tmp_path / "model_final.pth")
    with pytest.raises(InputError, match="model_final.pth: does not say what it is .* `framework` .fcclip, gkc"):
        import_checkpoint(found)
    back, imported = import_checkpoint(found, framework=name, model="RN-mini")
    assert_equal(back.state, ours.state)
    assert imported.missing == () and imported.unexpected == () and found.ignored == ("optimizer", "iteration")
    assert {key: back.options[key] for key in HEAD} == HEAD and back.mask is None
    normalised = {"fcclip": ours.clip["mean"], "gkc": [0.485, 0.456, 0.406]}
    assert back.clip["mean"] == normalised[name] and back.clip["model"] == "RN-mini"
    with pytest.raises(InputError, match="does not say what classes .* `vocabulary`"):
        embed_classes(back)
    words = embed_classes(back, Vocabulary.from_names("words", ["cat", "dog, hound"]))
    assert len(words.text_embeddings) == 3 and words.vocabulary.names == ("cat", "dog")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert registry.restore(words).segment(image).shape == (1, 2, 64, 64)


@pytest.mark.parametrize(
    ("distill", "scaled", "read"),
    [
        ({"distill": "none"}, False, {"distill": "none"}),
        ({"distill": "text-guided"}, True, {"distill": "text-guided", "distill_from": "query"}),
        ({"distill": "plain"}, False, {"distill": "plain"}),
        ({"distill": "text-guided", "distill_from": "embedding"}, True, {"distill_from": "embedding"}),
    ],
)
def test_parts_of_gkc_are_read_off(
    tmp_path: Path, clip: Clip, vocabulary: Vocabulary, distill: dict[str, str], scaled: bool, read: dict[str, str]
) -> None:
    ours = make("gkc", clip, vocabulary, **distill)
    assert ("training_only.text_scale" in ours.state) == scaled
    torch.save({"model": to_published("gkc")(ours.state)}, tmp_path / "m.pth")
    back, imported = import_checkpoint(read_weight_file(tmp_path / "m.pth"), framework="gkc", model="RN-mini")
    assert imported.unexpected == () and {key: back.options[key] for key in read} == read
    assert_equal(back.state, ours.state)


def mask2former(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a Mask2Former trained on COCO has of a state: its head, with a fixed list of classes, on another trunk."""
    shared = ("sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.")
    foreign = ("class_embed", "_mask_pooling_proj", "logit_scale")
    head = {key: v for key, v in state.items() if key.startswith(shared) and not any(word in key for word in foreign)}
    return {
        **head,
        "sem_seg_head.predictor.class_embed.weight": torch.zeros(134, 32),
        "sem_seg_head.predictor.class_embed.bias": torch.zeros(134),
        "backbone.res2.0.conv1.weight": torch.zeros(64, 64, 1, 1),
        "criterion.empty_weight": torch.ones(134),
    }


@pytest.mark.parametrize("name", published_frameworks())
def test_head_of_mask2former_is_a_start(
    tmp_path: Path, clip: Clip, checkpoints: dict[str, Checkpoint], name: str
) -> None:
    theirs = mask2former(to_published(name)(checkpoints[name].state))
    zoo = {"model": {key: value.numpy() for key, value in theirs.items()}, "__author__": "someone"}
    (tmp_path / "coco.pkl").write_bytes(pickle.dumps(zoo))
    files.write_tensors(tmp_path / "clip.safetensors", clip.model.state_dict(), {})
    given: dict[str, Any] = {
        "framework": name,
        "model": "RN-mini",
        "pretrained": str(tmp_path / "clip.safetensors"),
    }
    found = read_weight_file(tmp_path / "coco.pkl")
    with pytest.raises(MismatchError, match=r"coco.pkl: lacks \d+ entries \(backbone\.conv1\.weight, .*`partial=True`"):
        import_checkpoint(found, **given)
    back, imported = import_checkpoint(found, **given, partial=True)
    head = {key: value for key, value in checkpoints[name].state.items() if key.startswith("head.")}
    assert_equal({key: value for key, value in back.state.items() if key.startswith("head.")}, head)
    assert all(key.startswith(("backbone.", "class", "clip_head.", "training_only.")) for key in imported.missing)
    assert set(imported.unexpected) == {key for key in theirs if "class_embed" in key or "res2" in key}
    for key, value in clip.visual.state_dict().items():
        if not key.startswith("attnpool."):
            assert torch.equal(back.state[f"backbone.{key}"], value)
    again, _ = import_checkpoint(found, **given, partial=True)
    assert_equal(again.state, back.state)
    other, _ = import_checkpoint(found, **given, partial=True, seed=1)
    assert any(not torch.equal(other.state[key], value) for key, value in back.state.items())


@pytest.mark.parametrize("partial", [False, True])
def test_another_architecture_is_refused(tmp_path: Path, checkpoints: dict[str, Checkpoint], partial: bool) -> None:
    theirs = to_published("fcclip")(checkpoints["fcclip"].state)
    theirs["sem_seg_head.pixel_decoder.input_proj.0.0.weight"] = torch.zeros(32, 7, 1, 1)
    torch.save({"model": theirs}, tmp_path / "m.pth")
    with pytest.raises(MismatchError, match=r"m.pth: .*input_projections.0.0.weight has shape \[32, 7, 1, 1\], .*768"):
        import_checkpoint(read_weight_file(tmp_path / "m.pth"), framework="fcclip", model="RN-mini", partial=partial)


def test_what_is_missing_and_unexpected_is_named(tmp_path: Path, checkpoints: dict[str, Checkpoint]) -> None:
    theirs = to_published("fcclip")(checkpoints["fcclip"].state)
    del theirs["void_embedding.weight"]
    theirs["ema.decay"] = torch.ones(1)
    torch.save({"model": theirs}, tmp_path / "m.pth")
    with pytest.raises(MismatchError, match=r"lacks 1 entry \(class_head.scores.non_object\) .* and 1 that do"):
        import_checkpoint(read_weight_file(tmp_path / "m.pth"), framework="fcclip", model="RN-mini")


def test_names_of_another_framework_do_not_pass(tmp_path: Path, checkpoints: dict[str, Checkpoint]) -> None:
    torch.save({"model": to_published("fcclip")(checkpoints["fcclip"].state)}, tmp_path / "m.pth")
    with pytest.raises(MismatchError, match="m.pth"):
        import_checkpoint(read_weight_file(tmp_path / "m.pth"), framework="gkc", model="RN-mini")


def test_sizes_are_read_off_the_tensors(checkpoints: dict[str, Checkpoint]) -> None:
    assert head_options("fcclip", checkpoints["fcclip"].state) == HEAD
    assert head_options("deeplabv3", checkpoints["deeplabv3"].state) == {}
    assert head_options("gkc", {}) == {}


def test_counters_that_old_files_lack_are_zero(tmp_path: Path, checkpoints: dict[str, Checkpoint]) -> None:
    theirs = to_published("gkc")(checkpoints["gkc"].state)
    kept = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    assert len(kept) < len(theirs)
    torch.save({"model": kept}, tmp_path / "m.pth")
    back, imported = import_checkpoint(read_weight_file(tmp_path / "m.pth"), framework="gkc", model="RN-mini")
    assert imported.missing == () and int(back.state["backbone.bn1.num_batches_tracked"]) == 0
    back = replace(back, text_encoder=checkpoints["gkc"].text_encoder)
    registry.restore(embed_classes(back, Vocabulary.from_names("v", ["cat"])))


def test_a_file_that_says_what_it_is_is_believed(tmp_path: Path, checkpoints: dict[str, Checkpoint]) -> None:
    export(checkpoints["fcclip"], tmp_path / "m.pth", format="detectron2")
    found = read_weight_file(tmp_path / "m.pth")
    assert import_checkpoint(found, framework="fcclip")[0].framework == "fcclip"
    with pytest.raises(InputError, match="m.pth: is a checkpoint of fcclip, not of gkc; leave `framework` out"):
        import_checkpoint(found, framework="gkc")


def test_no_published_names() -> None:
    for renamer in (to_published, from_published):
        with pytest.raises(InputError, match="deeplabv3: no published names are known for it"):
            renamer("deeplabv3")
