"""Whole runs: mask and plan in force, exact resume, what a run leaves behind, what it refuses."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ovstrans import files
from ovstrans.checkpoints.file import Checkpoint, load_checkpoint
from ovstrans.clip.layers import norm_name
from ovstrans.clip.load import load_clip
from ovstrans.errors import InputError
from ovstrans.frameworks import registry
from ovstrans.masks.file import load_mask, save_mask
from ovstrans.masks.mask import Mask
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.spectrum.file import load_analysis
from ovstrans.training.loop import load_state
from ovstrans.training.run_folder import Run, RunFolder
from tests.datasets.test_label_counts import put_masks
from tests.training.conftest import train

Tiny = Callable[..., FinetuneRecipe]
PLAN = ["conv1", "layer1.0.conv2", "layer2.0.downsample.0"]


def result(run: Run | Path) -> Checkpoint:
    return load_checkpoint(run)


def log(run: Run | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def differing(first: Checkpoint, second: Checkpoint) -> list[str]:
    assert first.state.keys() == second.state.keys()
    return [key for key, value in first.state.items() if not torch.equal(value, second.state[key])]


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch, signum: int = signal.SIGINT) -> None:
    """Deliver a signal while a step is being finished."""
    append = RunFolder.append

    def noisy(self: RunFolder, entry: dict[str, Any]) -> None:
        append(self, entry)
        if entry["step"] == step:
            signal.raise_signal(signum)

    monkeypatch.setattr(RunFolder, "append", noisy)


def write_plan(path: Path, frozen: list[str]) -> Path:
    """An alpha file with this plan, around the analysis of a real one."""
    from ovstrans.clip.load import random_clip
    from ovstrans.spectrum.analysis import analyze
    from ovstrans.spectrum.file import analysis_json

    value = analysis_json(analyze(random_clip(), freeze="count:0", xmin="mid"))
    value["plan"]["frozen"] = frozen
    files.write_json(path, value)
    return path


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan") / "alpha.json", PLAN)


def test_a_run_under_mask_and_plan(
    tiny: Tiny, tmp_path: Path, clip_file: Path, mask_file: Path, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros exact after every step, frozen layers untouched, the rest moved, the folder complete."""
    mask = load_mask(mask_file)
    settings = tiny("optimizer.weight_decay=0.5", mask=str(mask_file), plan=str(plan_file))
    violations = []
    append = RunFolder.append
    built: list[torch.nn.Module] = []
    build = registry.build
    monkeypatch.setattr(registry, "build", lambda *a, **k: built.append(build(*a, **k)) or built[-1])
    monkeypatch.setattr(
        RunFolder,
        "append",
        lambda self, entry: (append(self, entry), violations.append(mask.violations(built[0])))[0],
    )
    run = train(settings, tmp_path / "run")

    assert violations == [[]] * 6
    end, start = result(run), load_clip("RN-mini", str(clip_file)).visual.state_dict()
    assert end.mask is not None and mask.violations(end.state) == []
    for name in PLAN:
        key = f"{name}.weight"
        kept = mask.tensors.get(key, torch.ones_like(start[key], dtype=torch.bool))
        assert torch.equal(end.state[f"backbone.{key}"], start[key] * kept), name
        norm = f"{norm_name(name)}.weight"  # BatchNorm goes on learning by default
        assert not torch.equal(end.state[f"backbone.{norm}"], start[norm])
    moved = "layer3.0.conv2.weight"
    assert not torch.equal(end.state[f"backbone.{moved}"], start[moved] * mask.tensors[moved])

    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoint.safetensors",
        "environment.json",
        "log.jsonl",
        "recipe.toml",
    ]
    entries = log(run)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert {
        "loss",
        "loss/cross_entropy",
        "lr",
        "grad_norm",
        "images_per_second",
        "processor_seconds",
        "elapsed",
    } < entries[0].keys()
    assert end.provenance["frozen"] == PLAN and end.recipe["run"]["mask"] == str(mask_file)
    assert end.text_encoder is not None and end.framework == "deeplabv3"
    images = torch.rand(1, 3, 64, 64)
    assert registry.restore(end).segment(images).shape == (1, len(end.vocabulary), 64, 64)


def test_interrupted_and_resumed_is_the_same_to_the_last_bit(
    tiny: Tiny, tmp_path: Path, mask_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps, an interrupt, three more: as six at once. The plan is made on the way."""
    settings = tiny("training.plan_after=2", "training.freeze=count:5", mask=str(mask_file))
    whole = train(settings, tmp_path / "whole")
    for step in (2, 3):  # just before the plan is made, and after it
        part = tmp_path / f"part{step}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(step, patch)
            train(settings, part)
        state = load_state(part / "state" / "state.pt")
        assert (state["step"], state["planned"], len(state["frozen"])) == (step, step > 2, 5 * (step > 2))
        assert not (part / "checkpoint.safetensors").exists()
        train(settings, part, resume=True)
        assert differing(result(whole), result(part)) == []
        assert [entry["loss"] for entry in log(part)] == [entry["loss"] for entry in log(whole)]
        assert (part / "alpha.json").read_text() == (whole.path / "alpha.json").read_text()
        assert not (part / "state").exists()


def test_a_kill_loses_no_more_than_the_steps_since_the_last_save(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny("training.save_every=2", "training.steps=4")
    whole = train(settings, tmp_path / "whole")
    append = RunFolder.append

    def dying(self: RunFolder, entry: dict[str, Any]) -> None:
        append(self, entry)
        if entry["step"] == 3:
            raise MemoryError  # no time to save

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(RunFolder, "append", dying)
        train(settings, tmp_path / "part")
    assert len(log(tmp_path / "part")) == 3
    train(settings, tmp_path / "part", resume=True)
    assert differing(result(whole), result(tmp_path / "part")) == []
    assert [entry["step"] for entry in log(tmp_path / "part")] == [1, 2, 3, 4]


def test_a_plan_made_on_the_way_holds_from_then_on(
    tiny: Tiny, tmp_path: Path, clip_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train everything two steps, analyse, freeze: no optimizer state and no change for frozen layers."""
    settings = tiny("training.freeze_norms=true", plan_after=2, freeze="count:4")
    weights: dict[str, torch.Tensor] = {}

    def peek(self: RunFolder, entry: dict[str, Any]) -> None:
        if entry["step"] == 2:
            weights.update({key: value.clone() for key, value in built[0].state_dict().items()})

    built: list[torch.nn.Module] = []
    build = registry.build
    monkeypatch.setattr(registry, "build", lambda *a, **k: built.append(build(*a, **k)) or built[-1])
    monkeypatch.setattr(RunFolder, "append", peek)
    run = train(settings, tmp_path / "run")
    frozen = load_analysis(run.path / "alpha.json").default_plan.frozen
    assert len(frozen) == 4 and load_analysis(run.path / "alpha.json").model == "RN-mini"
    end, start = result(run).state, load_clip("RN-mini", str(clip_file)).visual.state_dict()
    for name in frozen:
        key = f"backbone.{name}.weight"
        assert torch.equal(end[key], weights[key])
        assert not torch.equal(end[key], start[f"{name}.weight"])
        for suffix in ("weight", "bias", "running_mean", "running_var"):
            norm = f"backbone.{norm_name(name)}.{suffix}"
            assert torch.equal(end[norm], weights[norm])
    other = next(
        key for key in end if key.endswith("conv1.weight") and key[len("backbone.") : -len(".weight")] not in frozen
    )
    assert not torch.equal(end[other], weights[other])


@pytest.mark.parametrize(("option", "said"), [("frozen", ", backbone frozen;"), ("train", ", 3 layers frozen;")])
def test_the_headline_says_what_does_not_train(
    tiny: Tiny, tmp_path: Path, plan_file: Path, caplog: pytest.LogCaptureFixture, option: str, said: str
) -> None:
    caplog.set_level("INFO", "ovstrans")
    settings = tiny("training.steps=1", plan="" if option == "frozen" else str(plan_file))
    sizes = {"width": 32, "heads": 2, "encoder_layers": 1, "encoder_ffn": 32, "decoder_layers": 1, "decoder_ffn": 32}
    options = {**sizes, "trunk": option, "points": 16, "templates": "dataset"}
    train(replace(settings, model=replace(settings.model, framework="fcclip", options=options)), tmp_path / "run")
    assert said in caplog.text


def test_frozen_layers_have_no_optimizer_state(
    tiny: Tiny, tmp_path: Path, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {}
    for name, plan in (("all", ""), ("planned", str(plan_file))):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_after(1, patch)
            train(tiny(plan=plan), tmp_path / name)
        counts[name] = len(load_state(tmp_path / name / "state" / "state.pt")["optimizer"]["state"])
    assert counts["all"] - counts["planned"] == len(PLAN)


def test_random_weights_and_recalibrated_norms(tiny: Tiny, tmp_path: Path, mask_file: Path) -> None:
    """The arms of a comparison differ in their trunk; frozen norms keep what recalibration found."""
    changes = ("training.norms=frozen", "training.steps=1", "training.bn_recalibrate=1")
    runs = {
        init: result(train(tiny(*changes, init=init, mask=str(mask_file)), tmp_path / init))
        for init in ("pretrained", "random")
    }
    key = "backbone.layer1.0.bn1.running_mean"
    assert not torch.equal(runs["pretrained"].state[key], runs["random"].state[key])
    for end in runs.values():
        assert torch.equal(end.state["backbone.layer1.0.bn1.weight"], torch.ones(24))  # frozen affine
        assert not torch.equal(end.state[key], torch.zeros(24))
    assert runs["random"].provenance["init"] == "random"


def test_bfloat16_trains_too(tiny: Tiny, tmp_path: Path) -> None:
    run = train(tiny("training.precision=bf16", "training.steps=2"), tmp_path / "run")
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in log(run))
    assert all(value.dtype is not torch.bfloat16 for value in result(run).state.values())


def refused(settings: FinetuneRecipe, out: Path, **options: Any) -> str:
    """The message; nothing may be left behind."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(InputError) as caught:
        train(settings, out, **options)
    assert sorted(out.parent.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_ends_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, mask_file: Path, plan_file: Path
) -> None:
    mask = load_mask(mask_file)
    other = {**mask.tensors, "layer3.5.conv1.weight": torch.ones(8, 8, 1, 1, dtype=torch.bool)}
    save_mask(tmp_path / "other.safetensors", Mask(other, model="RN-mini"))
    plan = write_plan(tmp_path / "other.json", [])
    value = json.loads(plan.read_text())
    value["layers"].append({**value["layers"][0], "name": "layer3.5.conv1"})
    value["plan"]["frozen"] = ["layer3.5.conv1"]
    files.write_json(plan, value)
    (tmp_path / "cut.safetensors").write_bytes(mask_file.read_bytes()[:500])
    out = tmp_path / "run"
    assert "layer3.5.conv1" in refused(tiny(mask=str(tmp_path / "other.safetensors")), out)
    assert "layer3.5.conv1" in refused(tiny(plan=str(plan)), out)
    with pytest.raises(InputError, match=r"cut\.safetensors: not an intact"):
        train(tiny(mask=str(tmp_path / "cut.safetensors")), out)
    with pytest.raises(InputError, match=r"none\.safetensors: no such file"):
        train(tiny(mask=str(tmp_path / "none.safetensors")), out)
    assert not out.exists()
    assert "no such dataset" in refused(tiny(data="coco"), out)
    assert "no option" in refused(_with_option(tiny(), "depth", 3), out)
    assert "needs two at least" in refused(tiny("training.batch=1"), out)


def _with_option(settings: FinetuneRecipe, key: str, value: Any) -> FinetuneRecipe:
    settings.model.options[key] = value
    return settings


def test_an_existing_run_is_not_overwritten(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text("")
    with pytest.raises(InputError, match="`force=True`"):
        train(tiny(), tmp_path / "run")


def test_masks_whose_second_class_is_ignored_are_named_before_training(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    top = put_masks(tmp_path / "polyps", 0, 255)
    train(tiny(data=f"folder:{top}", steps=1), tmp_path / "run")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings[0].startswith("polyps:train: class polyp has no pixel anywhere in 4 label maps")
    assert "value 255 covers 25 % and is ignored" in warnings[0]
