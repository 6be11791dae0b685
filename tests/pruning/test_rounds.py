from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from ovstrans.clip.load import Clip
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch
from ovstrans.masks.mask import Mask
from ovstrans.progress import Progress
from ovstrans.pruning.losses import LOSSES, Distillation, FeatureDistillation
from ovstrans.pruning.methods import make_plan
from ovstrans.pruning.prune import prune as run
from ovstrans.pruning.result import PruneResult, state_path
from ovstrans.pruning.rounds import run_rounds
from ovstrans.recipes.schema import PruneRecipe
from tests.pruning.conftest import Pictures, small_clip, small_settings


class Killed(BaseException):
    """Stands for a signal."""


def prune(clip: Clip, recipe: PruneRecipe, data: Any = None, **arguments: Any) -> PruneResult:
    return run(clip, recipe=recipe, data=data, device="cpu", plot=False, **arguments)


def state_of(result: PruneResult) -> dict[str, torch.Tensor]:
    return result.weights


def assert_same(one: PruneResult, other: PruneResult) -> None:
    assert one.mask.tensors.keys() == other.mask.tensors.keys()
    assert all(torch.equal(one.mask.tensors[key], other.mask.tensors[key]) for key in one.mask.tensors)
    first, second = state_of(one), state_of(other)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert [each.losses for each in one.rounds] == [each.losses for each in other.rounds]


def test_masks_nest_and_counts_are_exact(clip: Clip, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Mask] = []
    apply = Mask.apply
    monkeypatch.setattr(Mask, "apply", lambda self, target: (masks.append(self), apply(self, target))[1])
    result = prune(clip, small_settings(), pictures)
    rounds = list({id(mask): mask for mask in masks}.values())
    assert [mask.kept for mask in rounds] == [each.kept for each in result.rounds]
    total = result.mask.total
    assert [each.kept for each in result.rounds] == [round(total / 2), round(round(total / 2) / 2), round(0.2 * total)]
    for before, after in itertools.pairwise(rounds):
        assert all(bool((before.tensors[key] | ~after.tensors[key]).all()) for key in after.tensors)


@pytest.mark.parametrize("method", ["imp", "magnitude", "random"])
def test_zeros_hold_and_the_rest_learns(clip: Clip, pictures: Pictures, method: str) -> None:
    # Half the weights, so that no layer of this small tower dies.
    result = prune(clip, small_settings(f"prune.method={method}", "prune.sparsity=0.5", "prune.rate=0.3"), pictures)
    assert result.mask.violations(result.weights) == []
    assert result.mask.sparsity == pytest.approx(0.5, abs=1e-4)
    before, after = clip.visual.state_dict(), state_of(result)
    weights = [key for key in before if key.endswith(("conv1.weight", "conv2.weight", "conv3.weight", "bn2.bias"))]
    assert all(not torch.equal(before[key], after[key]) for key in weights)
    nonzero = {key for key in weights if key not in result.mask.tensors and not bool(after[key].all())}
    assert nonzero == set()
    pool = [key for key in before if key.startswith("attnpool")]
    assert pool and all(torch.equal(before[key], after[key]) for key in pool)
    assert result.weights.keys() == before.keys()
    assert all(value.is_contiguous() and not value.requires_grad for value in result.weights.values())


def test_zeros_hold_after_every_step(clip: Clip, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Looking(FeatureDistillation):
        def forward(self, student: Any, teacher: Any, batch: Batch) -> dict[str, torch.Tensor]:
            seen.append(
                sum(
                    int((p == 0).sum())
                    for name, p in student.named_parameters()
                    if name.startswith("layer") and p.dim() == 4
                )
            )
            assert not teacher.training and student.training
            return super().forward(student, teacher, batch)

    monkeypatch.setitem(LOSSES, "features", lambda clip, options, text: Looking(**options))
    result = prune(clip, small_settings("optimizer.lr=0.01"), pictures)
    pruned = [result.mask.total - each.kept for each in result.rounds for _ in range(3)]
    assert seen == pruned


def test_the_clip_is_left_as_it_is(clip: Clip, pictures: Pictures) -> None:
    before = copy.deepcopy(clip.visual.state_dict())
    prune(clip, small_settings(), pictures)
    after = clip.visual.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.requires_grad for parameter in clip.visual.parameters())


def test_distillation_lowers_the_loss(clip: Clip, pictures: Pictures) -> None:
    settings = small_settings(
        "prune.method=magnitude", "prune.sparsity=0.5", "prune.rate=0.3", "prune.steps=15", "optimizer.lr=0.003"
    )
    losses = [each.loss for each in prune(clip, settings, pictures).rounds]
    assert losses[-1] < 0.8 * losses[0]


def test_without_steps_imp_is_magnitude(clip: Clip) -> None:
    imp, magnitude = (
        prune(clip, small_settings(f"prune.method={name}", "prune.steps=0")) for name in ("imp", "magnitude")
    )
    assert all(torch.equal(imp.mask.tensors[key], magnitude.mask.tensors[key]) for key in imp.mask.tensors)
    assert all(each.losses == {} for each in imp.rounds)
    dense, pruned = clip.visual.state_dict(), state_of(imp)
    for key, value in dense.items():
        kept = imp.mask.tensors.get(key, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(pruned[key], torch.where(kept, value, torch.zeros_like(value)))


@pytest.mark.parametrize("method", ["imp", "random"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_resumed_is_uninterrupted(
    pictures: Pictures, tmp_path: Path, method: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(f"prune.method={method}", "prune.final_steps=2")
    wanted = prune(small_clip(), settings, pictures)

    def die(progress: Progress) -> None:
        if progress.done == 3 * after + 1 and after < 3:
            raise Killed

    def die_late(self: PruneResult, *arguments: Any, **options: Any) -> None:
        raise Killed

    out = tmp_path / "mask.safetensors"
    with pytest.raises(Killed), monkeypatch.context() as patch:
        patch.setattr(PruneResult, "save", die_late)
        prune(small_clip(), settings, pictures, out=out, progress=die)
    assert [path.name for path in tmp_path.iterdir()] == ["mask.resume.pt"]
    begun: list[Progress] = []
    assert_same(prune(small_clip(), settings, pictures, out=out, resume=True, progress=begun.append), wanted)
    assert (begun[0].total, begun[0].done) == (11, 3 * after if after < 3 else 11)
    assert [each.done for each in begun] == list(range(begun[0].done, 12))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.safetensors", "mask.weights.safetensors"]


def test_a_kill_inside_a_round_goes_back_to_the_one_before(
    pictures: Pictures, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = small_settings("training.precision='bf16'")
    wanted = prune(small_clip(), settings, pictures)

    def die(progress: Progress) -> None:
        if progress.done == 5:
            raise Killed

    out = tmp_path / "mask.safetensors"
    with pytest.raises(Killed):
        prune(small_clip(), settings, pictures, out=out, progress=die)
    assert "keeps the last finished round; the same call with `resume=True`" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.resume.pt"]
    assert_same(prune(small_clip(), settings, pictures, out=out, resume=True), wanted)


def test_resume_refuses_another_run(clip: Clip, pictures: Pictures, tmp_path: Path) -> None:
    out = tmp_path / "mask.safetensors"

    def die(progress: Progress) -> None:
        if progress.done == 4:
            raise Killed

    with pytest.raises(Killed):
        prune(clip, small_settings(), pictures, out=out, progress=die)
    again: dict[str, Any] = {"out": out, "resume": True}
    with pytest.raises(InputError, match=r"optimizer\.lr is 0\.002, not 0\.5"):
        prune(clip, small_settings("optimizer.lr=0.5"), pictures, **again)
    with pytest.raises(InputError, match="weights_sha256"):
        prune(small_clip(seed=1), small_settings(), pictures, **again)
    with pytest.raises(InputError, match="images is 12, not 5"):
        prune(clip, small_settings(), Pictures(5), **again)
    state = state_path(out)
    earlier = torch.load(state)
    torch.save({key: value for key, value in earlier.items() if key != "masks"}, state)
    with pytest.raises(InputError, match="is not the state of a pruning run; start anew with `force=True`"):
        prune(clip, small_settings(), pictures, **again)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"resume\.pt"):
        prune(clip, small_settings(), pictures, **again)
    with pytest.raises(InputError, match="`out`, which is not given"):
        prune(clip, small_settings(), pictures, resume=True)


def test_a_run_started_anew_forgets_the_old_state(clip: Clip, pictures: Pictures, tmp_path: Path) -> None:
    out = tmp_path / "mask.safetensors"
    state_path(out).write_text("of another run")
    prune(clip, small_settings(), pictures, out=out, force=True)
    assert not state_path(out).exists()


def test_seeds_change_what_is_seen(clip: Clip, pictures: Pictures) -> None:
    results = []
    for seed in (0, 0, 1):
        results.append(prune(clip, small_settings(f"run.seed={seed}"), pictures).rounds[0].losses)
    assert results[0] == results[1] != results[2]


def test_a_losss_head_starts_from_the_seed_alone(
    clip: Clip, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Headed(Distillation):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(16, 4)

        def forward(self, student: Any, teacher: Any, batch: Batch) -> dict[str, torch.Tensor]:
            return {"own": (self.head(student(batch.images)) - self.head(teacher(batch.images))).square().mean()}

    monkeypatch.setitem(LOSSES, "headed", lambda clip, options, text: Headed())
    results = []
    for drawn_before in (0, 7):
        torch.rand(drawn_before)
        results.append(prune(clip, small_settings("distill.loss=headed"), pictures))
    assert_same(*results)


def test_frozen_norms_keep_their_statistics(clip: Clip, pictures: Pictures) -> None:
    name = "layer2.0.bn1.running_mean"
    dense = clip.visual.state_dict()[name]
    frozen = state_of(prune(clip, small_settings("training.norms=frozen"), pictures))[name]
    trained = state_of(prune(clip, small_settings(), pictures))[name]
    assert torch.equal(frozen, dense)
    assert not torch.equal(trained, dense)


def test_a_losss_own_parameters_are_trained_and_resumed(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Distillation] = []

    class Scaled(Distillation):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
            made.append(self)

        def forward(self, student: Any, teacher: Any, batch: Batch) -> dict[str, torch.Tensor]:
            return {"own": (self.scale * student(batch.images) - teacher(batch.images)).square().mean()}

    monkeypatch.setitem(LOSSES, "scaled", lambda clip, options, text: Scaled())
    settings, out = small_settings("distill.loss=scaled"), tmp_path / "mask.safetensors"
    prune(small_clip(), settings, pictures)
    final = float(made[0].scale.detach())
    assert final != 1.0

    def die(progress: Progress) -> None:
        if progress.done == 7:
            raise Killed

    with pytest.raises(Killed):
        prune(small_clip(), settings, pictures, out=out, progress=die)
    prune(small_clip(), settings, pictures, out=out, resume=True)
    assert float(made[2].scale.detach()) == final


def test_trunk_and_head_learn_at_their_own_rates_and_embeddings_do_not_decay(
    clip: Clip, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no gradient but zeros, AdamW takes rate times decay off a weight in a step."""
    made: list[Distillation] = []

    class Still(Distillation):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = torch.nn.Linear(2, 2)
            self.queries = torch.nn.Embedding(2, 2)
            made.extend((copy.deepcopy(self), self))

        def forward(self, student: Any, teacher: Any, batch: Batch) -> dict[str, torch.Tensor]:
            known = [each.sum() for each in self.parameters()]
            return {"none": 0.0 * (student(batch.images).sum() + sum(known))}

    monkeypatch.setitem(LOSSES, "still", lambda clip, options, text: Still())
    rates = ("optimizer.lr=0.1", "optimizer.backbone_rate=0.5", "optimizer.weight_decay=0.2", "schedule.cooldown=0")
    settings = small_settings("distill.loss=still", "prune.method='magnitude'", "prune.steps=1", *rates)
    result = prune(clip, settings, pictures)
    steps = settings.prune.total_steps(len(result.rounds))
    start, end = (each.state_dict() for each in made)
    torch.testing.assert_close(end["matrix.weight"], start["matrix.weight"] * (1 - 0.1 * 0.2) ** steps)
    assert all(torch.equal(end[key], start[key]) for key in ("matrix.bias", "queries.weight"))
    name = "layer2.0.conv2.weight"
    expected = clip.visual.state_dict()[name] * (1 - 0.5 * 0.1 * 0.2) ** steps
    torch.testing.assert_close(state_of(result)[name], expected * result.mask.tensors[name])


def test_a_loss_that_is_not_finite(clip: Clip, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Distillation):
        def forward(self, student: Any, teacher: Any, batch: Batch) -> dict[str, torch.Tensor]:
            return {"bad": student(batch.images).sum() * float("nan")}

    monkeypatch.setitem(LOSSES, "broken", lambda clip, options, text: Broken())
    with pytest.raises(InputError, match="bad is nan; lower `lr`"):
        prune(clip, small_settings("distill.loss=broken"), pictures)


def test_steps_need_images(clip: Clip) -> None:
    recipe = small_settings()
    plan = make_plan(clip.visual, recipe.prune, 0)
    with pytest.raises(InputError, match="distillation needs images"):
        run_rounds(clip, plan, Distillation(), None, recipe, device=torch.device("cpu"))


def test_damaged_weights_are_named(clip: Clip) -> None:
    with torch.no_grad():
        clip.visual.layer3[0].conv2.weight[0, 0, 0, 0] = float("nan")
    for method in ("imp", "random"):
        with pytest.raises(InputError, match=r"layer3\.0\.conv2"):
            prune(clip, small_settings(f"prune.method={method}", "prune.steps=0"))


def test_the_gradient_is_clipped_to_the_norm_of_the_recipe(
    clip: Clip, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each step, all parameters together; 0 leaves the gradient as it is."""
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def measured(self: torch.optim.AdamW, *arguments: Any, **options: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()))
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    prune(clip, small_settings("prune.steps=1", "optimizer.clip_norm=0"), pictures)
    free = list(norms)
    norms.clear()
    assert min(free) > 0.02
    prune(clip, small_settings("prune.steps=1", "optimizer.clip_norm=0.01"), pictures)
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3) and len(norms) == len(free)


def test_the_schedule_of_the_recipe_sets_the_rate(
    clip: Clip, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def measured(self: torch.optim.AdamW, *arguments: Any, **options: Any) -> Any:
        rates.append(max(group["lr"] for group in self.param_groups))
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    settings = small_settings("optimizer.lr=0.01", "schedule.warmup=3", "schedule.cooldown=0.4")
    prune(clip, settings, pictures)
    assert rates == pytest.approx([0.01 * settings.schedule.factor(number, 9) for number in range(9)])
    assert rates[0] == pytest.approx(0.01 / 3) and rates[3] == pytest.approx(0.01) and rates[8] < 0.005


def test_data_and_options_may_be_objects_and_are_recorded(clip: Clip, pictures: Pictures) -> None:
    first = run(clip, recipe=small_settings(), data=pictures, sparsity=0.5, device="cpu")
    assert first.mask.sparsity == pytest.approx(0.5, abs=1e-4)
    assert first.mask.recipe["data"]["dataset"] == "pictures:all" and first.mask.recipe["prune"]["sparsity"] == 0.5
    alike = run(clip, recipe=small_settings("prune.steps=0"), like=first.mask, device="cpu")
    assert alike.mask.method == "random" and alike.mask.layer_densities() == first.mask.layer_densities()
    with pytest.raises(TypeError, match="unknown option 'sparcity'; did you mean 'sparsity'"):
        run(clip, recipe=small_settings(), sparcity=0.5)
    with pytest.raises(InputError, match="`like`: takes sparsity and scope from its mask"):
        run(clip, recipe=small_settings(), like=first.mask, sparsity=0.5)


def test_a_round_reports_the_mean_of_its_losses_on_normalised_images(
    clip: Clip, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images in [0, 1] reach the loss with CLIP's mean (here 0.5) and deviation (here 0.25) taken out."""
    values = iter(range(9))
    seen: list[torch.Tensor] = []

    class Counting(Distillation):
        def forward(self, student: Any, teacher: Any, batch: Batch) -> dict[str, torch.Tensor]:
            seen.append(batch.images)
            return {"own": 0.0 * student(batch.images).sum() + next(values)}

    monkeypatch.setitem(LOSSES, "counting", lambda clip, options, text: Counting())
    result = prune(clip, small_settings("distill.loss=counting"), pictures)
    assert [each.losses["own"] for each in result.rounds] == pytest.approx([1.0, 4.0, 7.0])
    assert -2.0 <= float(torch.stack(seen).min()) < 0.0 < float(torch.stack(seen).max()) <= 2.0
