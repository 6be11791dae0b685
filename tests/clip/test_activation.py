"""OpenAI's weights given as a file are run with QuickGELU, whatever their form; what cannot be told is warned of."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ovstrans
from ovstrans.checkpoints.file import load_checkpoint
from ovstrans.clip.activation import find_activation
from ovstrans.clip.load import load_clip, random_clip
from ovstrans.clip.weights import read_weight_file
from ovstrans.costs.target import load_target
from ovstrans.errors import MissingFileError
from ovstrans.frameworks.registry import text_clip
from ovstrans.interop.inspect import inspect
from tests.clip import tiny_openai as tiny

FORMS = {
    "archive": ("RN50.pt", tiny.archive),
    "code": ("state.pt", tiny.state_of_openais_code),
    "half": ("half.pt", tiny.half_state),
    "extras": ("extras.safetensors", tiny.state_with_extras),
    "hub": ("open_clip_model.safetensors", tiny.converted),
    "cache": ("cached.safetensors", tiny.in_the_cache_of_the_hub),
    "run": ("epoch_1.pt", tiny.training_run),
}


@pytest.fixture(autouse=True)
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)


def same_function(clip: ovstrans.Clip) -> bool:
    """Whether a CLIP computes what the published one does."""
    reference = tiny.reference()
    with torch.inference_mode():
        images, tokens = torch.rand(1, 3, 96, 96), reference.tokenizer(["a star", "grass"])
        return all(
            torch.allclose(getattr(clip.model, name)(x), getattr(reference.model, name)(x), atol=1e-6)
            for name, x in (("encode_image", images), ("encode_text", tokens))
        )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_run_with_quickgelu(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ovstrans")
    name, write = FORMS[form]
    path = write(tmp_path / name) or tmp_path / name
    clip = load_clip(tiny.MODEL, str(path))
    assert same_function(clip) and tiny.uses_quick_gelu(clip.model)
    assert (clip.name, clip.pretrained) == (tiny.QUICK, str(path))
    assert f"run with QuickGELU, as {tiny.QUICK}" in caplog.text and "WARNING" not in caplog.text


def test_the_file_of_a_tag_is_known_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.plain(tmp_path / "w.safetensors")
    digest = tiny.sha256(tmp_path / "w.safetensors")
    for number, url in enumerate((f"https://host/{digest}/RN50.pt", f"https://host/rn50-quick-{digest[:8]}.pt")):
        (tmp_path / str(number)).mkdir()
        tiny.register(tmp_path / str(number), monkeypatch, url)
        found = find_activation(tiny.MODEL, read_weight_file(tmp_path / "w.safetensors"))
        assert found.quick_gelu and found.reason == "it is the file of open_clip's tag openai"


def test_what_cannot_be_told_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.plain(tmp_path / "w.safetensors")
    clip = load_clip(tiny.MODEL, "w.safetensors")
    assert clip.name == tiny.MODEL and not tiny.uses_quick_gelu(clip.model)
    assert f"OpenAI's want QuickGELU: name the model {tiny.QUICK} for them" in caplog.text
    caplog.clear()
    clip = load_clip(tiny.QUICK, "w.safetensors")  # the way that the warning names
    assert same_function(clip) and clip.name == tiny.QUICK and not caplog.text


def test_weights_trained_with_gelu_stay_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = random_clip(tiny.MODEL, seed=1).model.state_dict()
    save_file(dict(state), tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": {**json.loads((tmp_path / "configs" / f"{tiny.MODEL}.json").read_text())}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    clip = load_clip(tiny.MODEL, "open_clip_model.safetensors")
    assert clip.name == tiny.MODEL and not tiny.uses_quick_gelu(clip.model) and not caplog.text


def test_the_configuration_of_another_model_tells_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.converted(tmp_path / "w.safetensors")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 999
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert load_clip(tiny.MODEL, "w.safetensors").name == tiny.MODEL and "nothing tells" in caplog.text


def test_the_hubs_configuration_tells_how_images_are_normalised(tmp_path: Path) -> None:
    tiny.converted(tmp_path / "w.safetensors")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["preprocess_cfg"].update(mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3])
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    clip = load_clip(tiny.MODEL, "w.safetensors")
    assert clip.mean == (0.5, 0.4, 0.3) and clip.std == (0.1, 0.2, 0.3)
    assert load_clip(tiny.MODEL, str(tmp_path / "configs" / ".." / "w.safetensors")).mean == clip.mean


def test_the_folder_of_a_hub(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    tiny.converted(tmp_path / "hub" / "open_clip_model.safetensors")
    assert same_function(load_clip(tiny.MODEL, "hub"))


def test_an_image_encoder_of_a_resnet_has_no_activation_to_choose(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(dict(tiny.reference().visual.state_dict()), tmp_path / "w.safetensors")
    assert load_clip(tiny.MODEL, "w.safetensors").name == tiny.MODEL and not caplog.text


def test_every_command_runs_them_with_quickgelu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the archive to a prediction by new words, each command in a folder of its own."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "elsewhere").mkdir()
    tiny.archive(tmp_path / "weights" / "RN50.pt")
    file = str(tmp_path / "weights" / "RN50.pt")

    pruned = ovstrans.prune(
        tiny.MODEL,
        pretrained="weights/RN50.pt",
        method="magnitude",
        sparsity=0.5,
        steps=0,
        out="mask.safetensors",
        plot=False,
    )
    assert (pruned.mask.model, pruned.mask.pretrained) == (tiny.QUICK, file)
    mask = tmp_path / "mask.safetensors"

    monkeypatch.chdir(tmp_path / "elsewhere")
    analysis = ovstrans.analyze(mask=mask)
    assert (analysis.model, analysis.pretrained) == (tiny.QUICK, file)
    assert analysis.weights_sha256 == pruned.mask.weights_sha256
    assert ovstrans.analyze(tiny.MODEL, mask=mask).weights_sha256 == pruned.mask.weights_sha256
    again = ovstrans.prune(like=mask, steps=0)
    assert (again.mask.model, again.mask.pretrained) == (tiny.QUICK, file)
    assert load_target("deeplabv3", mask=mask).model == tiny.QUICK

    small = {"data.size": 64, "data.images": 4, "augment.crop": 64, "training.batch": 2, "model.width": 8}
    run = ovstrans.finetune(mask=mask, settings=small, steps=1, out="run", device="cpu")
    checkpoint = load_checkpoint(run)
    assert (checkpoint.clip["model"], checkpoint.clip["pretrained"]) == (tiny.QUICK, file)
    assert tiny.uses_quick_gelu(text_clip(checkpoint).model)
    checkpoint.text_encoder = None  # as of large models: the text encoder is loaded from the recorded file
    assert same_function(text_clip(checkpoint))
    assert tiny.uses_quick_gelu(load_clip(checkpoint.clip["model"], checkpoint.clip["pretrained"]).model)
    found = ovstrans.Segmenter.load(run).segment(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy(), "road, a red car")
    assert found.classes == ("road", "a red car")

    for source, options in ((mask, {}), (file, {"model": tiny.MODEL}), (tmp_path / "mask.weights.safetensors", {})):
        made = ovstrans.export(source, "clip.safetensors", force=True, **options)
        assert any(f"open_clip.create_model('{tiny.QUICK}'" in note for note in made.notes), source
    back = load_clip(tiny.MODEL, "clip.safetensors")  # our own file says what it is
    assert back.name == tiny.QUICK
    assert "hash is that of" in " ".join(inspect(mask, verify=True).checks)


def test_the_user_has_the_last_word(tmp_path: Path) -> None:
    tiny.archive(tmp_path / "RN50.pt")
    ovstrans.prune(tiny.MODEL, pretrained="RN50.pt", method="magnitude", steps=0, out="mask.safetensors", plot=False)
    save_file(dict(random_clip(tiny.MODEL, seed=9).model.state_dict()), tmp_path / "other.safetensors")
    other = ovstrans.analyze(tiny.MODEL, pretrained="other.safetensors", mask="mask.safetensors")
    assert (other.model, other.pretrained) == (tiny.MODEL, str(tmp_path / "other.safetensors"))
    assert ovstrans.analyze(pretrained="other.safetensors", mask="mask.safetensors").pretrained == other.pretrained
    assert ovstrans.analyze("RN-mini", mask="mask.safetensors").pretrained == "bundled"


def test_weights_that_are_gone_are_named_with_the_mask_that_records_them(tmp_path: Path) -> None:
    tiny.archive(tmp_path / "RN50.pt")
    ovstrans.prune(tiny.MODEL, pretrained="RN50.pt", method="magnitude", steps=0, out="mask.safetensors", plot=False)
    (tmp_path / "RN50.pt").rename(tmp_path / "moved.pt")
    for work in (
        lambda: ovstrans.analyze(mask="mask.safetensors"),
        lambda: ovstrans.export("mask.safetensors"),
        lambda: ovstrans.prune(like="mask.safetensors", steps=0),
        lambda: ovstrans.finetune(mask="mask.safetensors", steps=1, out="run", device="cpu"),
    ):
        with pytest.raises(MissingFileError, match=r"RN50.pt: no such file; mask.safetensors records .*`pretrained`"):
            work()
    assert ovstrans.analyze(mask="mask.safetensors", pretrained="moved.pt").model == tiny.QUICK
