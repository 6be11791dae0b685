"""DeOP as a framework: what each stage trains, what inference sees, and options that do not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.load import Clip
from ovstrans.clip.prompts import embed_prompted
from ovstrans.clip.text import TextClassifier
from ovstrans.datasets.sample import Sample
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch
from ovstrans.frameworks.deop import DeOP
from ovstrans.frameworks.deop_options import ANCHORS, PROMPTS, PROPOSALS
from ovstrans.masks.mask import Mask
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.frameworks import deop_case as case
from tests.frameworks.fcclip_case import segments

NAMES = Vocabulary.from_names("some", ["cat", "dog", "grass", "sky"], novel=frozenset({1}))
TINY: dict[str, Any] = {
    "proposal_encoder": "RN-mini",
    "queries": 6,
    "width": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_ffn": 32,
    "decoder_layers": 1,
    "decoder_ffn": 32,
    "points": 64,
    "anchor_ffn": 32,
    "anchor_dropout": 0.0,
    "position_layers": [0, 2],
    "position_grid": 5,
    "prompt_length": 3,
    "prompt_width": case.EMBED,
}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return case.clip()


def make(clip: Clip, names: Vocabulary = NAMES, **options: Any) -> DeOP:
    """In eval mode."""
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(len(names), case.EMBED), dim=1)
    text = TextClassifier(rows, torch.arange(len(names)), names)
    given = {"encoder": clip.visual, "mean": clip.mean, "std": clip.std, "text": text}
    return DeOP(**given, options={**TINY, **options}).eval()


def batch(count: int = 2, size: int = 64) -> Batch:
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(4))
    labels = torch.zeros(count, size, size, dtype=torch.long)
    labels[:, size // 2 :] = 2
    labels[:, :, size // 2 :] = 1
    labels[:, :8] = 255
    own = tuple(segments((0, 8, 0, 32, 32), (2, 32, 0, 64, 32)) for _ in range(count))
    teacher = tuple(F.normalize(torch.randn(2, case.EMBED), dim=1) for _ in range(count))
    return Batch(images, labels, segments=own, teacher=teacher)


def ready(clip: Clip, stage: str, **options: Any) -> DeOP:
    """In train mode, in a stage of training."""
    framework = make(clip, **options)
    framework.start_training(clip, resumed=True)
    framework.stage = stage
    return framework.train()


TRAINED = {
    PROMPTS: ("prompt.",),
    PROPOSALS: ("proposals.",),
    ANCHORS: ("anchors.", "positions.", "classifier.", "prompt."),
}


@pytest.mark.parametrize("stage", TRAINED)
def test_each_stage_trains_its_own_parameters_and_clip_never(clip: Clip, stage: str) -> None:
    framework = ready(clip, stage)
    before = {name: value.clone() for name, value in framework.state_dict().items()}
    torch.stack(list(framework.losses(batch()).values())).sum().backward()
    for name, parameter in framework.named_parameters():
        if not parameter.requires_grad:
            assert name.startswith("backbone.") or "proposals.encoder" in name, name
            assert parameter.grad is None, name
        elif parameter.grad is not None:
            assert name.startswith(TRAINED[stage]), name
    trained = {name.split(".")[0] + "." for name, value in framework.named_parameters() if value.grad is not None}
    assert trained == set(TRAINED[stage])
    assert all(torch.equal(value, before[name]) for name, value in framework.state_dict().items())


def test_modes_of_what_is_not_trained(clip: Clip) -> None:
    framework = ready(clip, ANCHORS)
    assert framework.training and not framework.backbone.training
    assert framework.proposals is not None and not framework.proposals.training
    assert framework.anchors is not None and framework.anchors.training
    framework = ready(clip, PROPOSALS)
    assert framework.proposals is not None and framework.proposals.training
    norms = [module for module in framework.proposals.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)


@pytest.mark.parametrize("stage", [PROPOSALS, ANCHORS])
def test_novel_pixels_and_names_give_no_signal(clip: Clip, stage: str) -> None:
    given, framework = batch(), ready(clip, stage)
    assert given.labels is not None
    ignored = replace(given, labels=torch.where(given.labels == 1, 255, given.labels))
    found = []
    for each in (given, ignored):
        torch.manual_seed(1)
        found.append(framework.losses(each))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    other = ready(clip, stage)
    other._vocabulary = Vocabulary.from_names("some", ["cat", "zebra", "grass", "sky"], novel=frozenset({1}))
    other.start_training(clip, resumed=True)
    torch.manual_seed(1)
    changed = other.losses(given)
    assert all(torch.allclose(found[0][name], changed[name]) for name in changed)


def test_the_prompt_loss_by_hand(clip: Clip) -> None:
    framework, given = ready(clip, PROMPTS), batch()
    assert given.teacher is not None and framework.prompt is not None
    base = Vocabulary.from_names("base", ["cat", "grass", "sky"])
    vectors: Any = framework.prompt.vectors
    rows = embed_prompted(clip, base, vectors.detach()).embeddings
    logits = 100 * torch.cat(given.teacher) @ rows.t()
    expected = F.cross_entropy(logits, torch.tensor([0, 1, 0, 1]))
    assert torch.allclose(framework.losses(given)["prompt"], expected, rtol=1e-4)
    nothing = replace(given, segments=(segments(),), teacher=(torch.zeros(0, case.EMBED),))
    assert float(framework.losses(nothing)["prompt"].detach()) == 0


def test_training_ends_with_the_names_behind_the_trained_prompt(clip: Clip) -> None:
    framework = ready(clip, ANCHORS)
    assert framework.prompt is not None
    with torch.no_grad():
        framework.prompt.vectors.add_(1)  # type: ignore[operator]
    framework.finish_training()
    vectors = framework.state_dict()["prompt.vectors"]
    expected = embed_prompted(clip, NAMES, vectors)
    assert torch.allclose(framework.text.embeddings, expected.embeddings)
    again = DeOP.embed_vocabulary(clip, NAMES, {"prompt.vectors": vectors})
    assert torch.equal(again.embeddings, expected.embeddings)
    assert not torch.allclose(DeOP.embed_vocabulary(clip, NAMES, {}).embeddings, expected.embeddings)


def test_stages_split_the_run(clip: Clip) -> None:
    def steps(total: int = 100, **options: Any) -> dict[str, int]:
        return {each.name: each.steps for each in make(clip, **options).training_stages(total)}

    parts = {"prompt_part": 0.2, "proposal_part": 0.5}
    assert steps(**parts) == {PROMPTS: 20, PROPOSALS: 50, ANCHORS: 30}
    assert steps(7, **parts) == {PROMPTS: 1, PROPOSALS: 4, ANCHORS: 2}
    assert steps(1, **parts) == {PROPOSALS: 1}
    assert steps(prompt="templates", **parts) == {PROPOSALS: 50, ANCHORS: 50}
    assert steps(anchors=False, **parts) == {PROMPTS: 20, PROPOSALS: 80}
    assert steps(proposal_encoder="", **parts) == {PROMPTS: 20, ANCHORS: 80}
    assert steps(prompt_part=0.0, proposal_part=0.0) == {ANCHORS: 100}
    assert steps(anchors=False, prompt="templates", proposal_encoder="") == {}
    stages = make(clip, **parts, prompt_lr=0.5, proposal_lr=0.25).training_stages(100)
    assert [each.lr for each in stages] == [0.5, 0.25, None]
    assert [each.requirements.teacher for each in stages] == [True, False, False]


class Calls:
    """Counts the passes of CLIP."""

    def __init__(self, framework: DeOP) -> None:
        self.sizes: list[tuple[int, ...]] = []
        framework.backbone.register_forward_pre_hook(lambda _module, inputs: self.sizes.append(inputs[0].shape))


def test_inference_is_one_pass_and_the_two_stream_way_one_for_each_proposal(clip: Clip) -> None:
    images = torch.rand(2, 3, 70, 50)
    framework = make(clip)
    calls = Calls(framework)
    found = framework.segment(images)
    assert found.shape == (2, 4, 70, 50) and calls.sizes == [(2, 3, 96, 64)]
    two_stream = make(clip, two_stream=True)
    assert two_stream.proposals is not None
    calls = Calls(two_stream)
    probabilities, masks = two_stream.predict_masks(images)
    inside = (F.interpolate(masks, (96, 64), mode="bilinear").sigmoid() > 0.5).flatten(2).any(2)
    assert [size[0] for size in calls.sizes] == [int(inside.sum())]
    assert all(size[1:] == (3, 64, 64) for size in calls.sizes)
    assert torch.allclose(probabilities[..., :-1].sum(-1), torch.ones(2, 6))
    assert not torch.allclose(two_stream.segment(images), found)


def quarters(height: int, width: int) -> Tensor:
    masks = torch.zeros(3, height, width, dtype=torch.bool)
    masks[0, : height // 2] = True
    masks[1, height // 2 :, : width // 2] = True
    masks[2, height // 2 :, width // 2 :] = True
    return masks


@pytest.mark.parametrize("anchors", [True, False])
def test_given_masks_are_classified_and_painted(clip: Clip, anchors: bool) -> None:
    framework, images = make(clip, anchors=anchors), torch.rand(1, 3, 70, 50)
    masks = quarters(70, 50)
    scores = framework.scores(images, masks=[masks])[0]
    classes = scores.best(0, 70).classes
    for mask in masks:
        assert len(classes[mask].unique()) == 1
    assert scores.probabilities.shape == (3, 5)
    best = scores.probabilities[:, :-1].argmax(1)
    assert [int(classes[mask][0]) for mask in masks] == best.tolist()


def test_given_masks_of_several_images_differ_in_number(clip: Clip) -> None:
    framework, images = make(clip), torch.rand(2, 3, 64, 64)
    both = framework.scores(images, masks=[quarters(64, 64), quarters(64, 64)[:1]])
    single = framework.scores(images[1:], masks=[quarters(64, 64)[:1]])
    assert torch.allclose(both[1].rows(0, 64), single[0].rows(0, 64), atol=1e-5)
    empty = framework.scores(images[:1], masks=[torch.zeros(0, 64, 64, dtype=torch.bool)])[0]
    assert len(empty.best(0, 64).classes.unique()) == 1
    many = torch.eye(64).bool()[:, None, :].expand(64, 64, 64)
    assert framework.scores(images[:1], masks=[many])[0].probabilities.shape == (64, 5)


def test_given_masks_come_from_the_truth_or_a_folder(clip: Clip, tmp_path: Any) -> None:
    label = torch.tensor([[0, 0, 255], [2, 2, 2]], dtype=torch.uint8)
    sample = Sample(torch.zeros(3, 2, 3, dtype=torch.uint8), label, "a")
    assert make(clip).given_masks("a", (2, 3), sample) is None
    truth = make(clip, proposals="truth").given_masks("a", (2, 3), sample)
    assert truth is not None and torch.equal(truth, torch.stack([label == 0, label == 2]))
    parts = replace(sample, segment_map=torch.tensor([[7, 9, 0], [8, 8, 8]], dtype=torch.int32))
    truth = make(clip, proposals="truth").given_masks("a", (2, 3), parts)
    assert truth is not None and truth.sum((1, 2)).tolist() == [1, 3, 1]
    with pytest.raises(InputError, match="no ground truth"):
        make(clip, proposals="truth").given_masks("a", (2, 3))
    import numpy as np

    np.savez(tmp_path / "a.npz", masks=np.ones((1, 2, 3)))
    found = make(clip, proposals=f"folder:{tmp_path}").given_masks("photos/a.jpg", (2, 3))
    assert found is not None and found.shape == (1, 2, 3)


def test_the_training_free_variant_pools_masks_and_has_no_other_class(clip: Clip) -> None:
    framework = make(clip, anchors=False, prompt="templates", proposal_encoder="", severance="plain")
    assert not [name for name, parameter in framework.named_parameters() if parameter.requires_grad]
    images, masks = torch.rand(1, 3, 64, 64), quarters(64, 64)
    found = framework.scores(images, masks=[masks])[0].probabilities
    assert (found[:, -1] == 0).all() and torch.allclose(found.sum(1), torch.ones(3))
    features = framework.dense_features(framework.prepare(images), _proposals(masks))
    pooled = F.normalize((features[0].flatten(1) @ _patches(masks).t()).t(), dim=1)
    expected = (100 * pooled @ framework.text.embeddings.t()).softmax(1)
    assert torch.allclose(found[:, :-1], expected, atol=1e-4)
    with pytest.raises(InputError, match="has no network that proposes masks"):
        framework.segment(images)


def _patches(masks: Tensor) -> Tensor:
    return F.avg_pool2d(masks[None].float(), 16)[0].flatten(1)


def _proposals(masks: Tensor) -> Any:
    from ovstrans.frameworks.deop_proposals import given_proposals

    return given_proposals(masks, (64, 64))


def test_without_a_network_anchors_train_on_the_true_masks(clip: Clip) -> None:
    framework = ready(clip, ANCHORS, proposal_encoder="")
    losses = framework.losses(batch())
    torch.stack(list(losses.values())).sum().backward()
    assert framework.anchors is not None and framework.anchors.queries.grad is not None
    used = framework.anchors.queries.grad.abs().sum(1) > 0
    assert used[:2].all()


def test_a_mask_of_clip_applies_and_holds(clip: Clip) -> None:
    framework = make(clip)
    name = "transformer.resblocks.3.mlp.c_fc.weight"
    shape = framework.backbone.state_dict()[name].shape
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.8
    mask = Mask({name: kept}, model="ViT")
    mask.apply(framework)
    assert not mask.violations(framework)
    before = framework.segment(torch.rand(1, 3, 64, 64))
    assert torch.isfinite(before).all()
    assert (framework.state_dict()[f"backbone.{name}"][~kept] == 0).all()


def test_components_are_disjoint_and_complete(clip: Clip) -> None:
    framework = make(clip)
    parts = framework.components()
    assert next(iter(parts)) == "trunk"
    owned = [id(parameter) for part in parts.values() for parameter in part.parameters()]
    assert len(owned) == len(set(owned)) == len(list(framework.parameters()))


@pytest.mark.parametrize("stage", TRAINED)
def test_training_outputs_run_on_meta(clip: Clip, stage: str) -> None:
    framework = make(clip).to("meta")
    framework.stage = stage
    outputs = framework.training_outputs(torch.empty(2, 3, 64, 64, device="meta"))
    assert outputs and all(each.is_meta for each in outputs)
    assert framework.segment(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 4, 64, 64)


def test_patches_that_do_not_divide_the_image(clip: Clip) -> None:
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    encoder = VisionTransformer(70, 14, 64, 2, 2, 2.0, output_dim=case.EMBED)
    odd = replace(clip, model=type("Model", (), {"visual": encoder})())
    framework = make(odd, position_layers=[0], severed=[0, 1])
    assert framework.segment(torch.rand(1, 3, 64, 96)).shape == (1, 4, 64, 96)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"severance": "none"}, "option severance = 'none'; use 'plain', 'mask-guided', 'with-mask'"),
        ({"severed": [0]}, "only the last blocks can be severed, such as 3"),
        ({"severed": ["3"]}, "option severed = .*a list of whole numbers"),
        ({"proposals": "sam"}, "option proposals = 'sam'; use 'network', 'truth' or 'folder:PATH'"),
        ({"proposals": "folder:"}, "option proposals = 'folder:'"),
        ({"proposal_encoder": "ViT-B-16"}, "ViT"),
        ({"position_layers": [4]}, r"position_layers = \[4\]; the image encoder has 4 blocks, 0 to 3"),
        ({"position_layers": [-1]}, "numbers from 0 on"),
        ({"prompt_part": 0.7, "proposal_part": 0.7}, "more than the whole run"),
        ({"prompt_part": -0.1}, "a fraction from 0 to 1"),
        ({"anchor_heads": 7}, "must be a multiple of it"),
        ({"anchor_dropout": 1.0}, "a probability"),
        ({"clip_scale": 0.0}, "above 0 to 100"),
        ({"queries": 0}, "at least 1"),
        ({"proposal_lr": 0.0}, "above 0"),
        ({"anchor_dice_weight": -1.0}, "0 or above"),
    ],
)
def test_options_that_do_not_fit(clip: Clip, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(clip, **options)


def test_a_prompt_of_another_width(clip: Clip) -> None:
    with pytest.raises(InputError, match="option prompt_width = 12; the text encoder of deop-case has a width of 64"):
        make(clip, prompt_width=12).start_training(clip, resumed=True)


def test_losses_that_lack_something(clip: Clip) -> None:
    bare = Batch(torch.rand(1, 3, 64, 64))
    with pytest.raises(InputError, match="training needs labels"):
        ready(clip, ANCHORS).losses(bare)
    with pytest.raises(InputError, match="a teacher's view of segments"):
        ready(clip, PROMPTS).losses(bare)
    framework = make(clip).train()
    with pytest.raises(InputError, match="with `start_training` only"):
        framework.losses(batch())
