"""DeepLabV3: shapes, training signal, use of CLIP's own embedding, checkpoints."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP

from ovstrans.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from ovstrans.clip.backbone import encode_dense, encode_stages
from ovstrans.clip.load import Clip, create_image_encoder
from ovstrans.clip.text import TextClassifier
from ovstrans.errors import InputError, MismatchError
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Batch
from ovstrans.frameworks.deeplabv3 import RATES, DeepLabV3
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.frameworks.conftest import make_text

DECODERS = ["none", "plus"]
PATHS = ["none", "sum", "ensemble"]


def make(clip: Clip, text: TextClassifier, **options: Any) -> DeepLabV3:
    torch.manual_seed(0)
    options = {"width": 16, "low_width": 4, **options}
    return DeepLabV3(encoder=clip.visual, mean=clip.mean, std=clip.std, text=text, options=options)


def undropped(clip: Clip, text: TextClassifier, **options: Any) -> DeepLabV3:
    """In train mode, but the same at every call."""
    return make(clip, text, dropout=0.0, last_dropout=0.0, **options).train()


def normalised(clip: Clip, images: Tensor) -> Tensor:
    return (images - torch.tensor(clip.mean).view(3, 1, 1)) / torch.tensor(clip.std).view(3, 1, 1)


def batch_of(height: int = 64, width: int = 64, images: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (images, height, width), generator=generator)
    labels[:, : height // 4] = 255
    return Batch(torch.rand(images, 3, height, width, generator=generator), labels)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [(32, 32), (33, 70), (97, 64)])
def test_shapes_at_odd_sizes(clip: Clip, text: TextClassifier, decoder: str, path: str, size: tuple[int, int]) -> None:
    framework = make(clip, text, clip_path=path, decoder=decoder).eval()
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        low, full = framework.logits(images), framework.segment(images)
        truth = framework.segment(images, size=(50, 41))
    finer = {"none": 2, "plus": 8}[decoder]  # than stride 32
    assert low.shape == (1, 4, -(-size[0] // 32) * finer, -(-size[1] // 32) * finer)
    assert full.shape == (1, 4, *size) and truth.shape == (1, 4, 50, 41)
    assert torch.isfinite(full).all()


def test_rates_are_the_papers() -> None:
    """Chen et al. 2017, sec. 4.1: (6, 12, 18) at stride 16, doubled at 8; halved at 32 likewise."""
    assert RATES == {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_output_stride_sets_map_and_rates(clip: Clip, text: TextClassifier, stride: int, decoder: str) -> None:
    framework = make(clip, text, output_stride=stride, decoder=decoder).eval()
    seen: list[torch.Size] = []
    framework.aspp.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[-2:]))
    with torch.no_grad():
        found = framework.logits(torch.rand(1, 3, 96, 64)).shape[-2:]
    assert seen == [(96 // stride, 64 // stride)]
    assert found == {"none": (96 // stride, 64 // stride), "plus": (24, 16)}[decoder]
    dilations = [
        module.dilation[0] for module in framework.aspp.modules() if getattr(module, "kernel_size", 0) == (3, 3)
    ]
    assert tuple(dilations) == RATES[stride]


def test_initial_weights_are_drawn_in_a_fixed_order(clip: Clip, text: TextClassifier) -> None:
    """Seeds of old runs mean the same weights: ASPP, two convolutions and a norm, the non-object, in this order."""
    assert DeepLabV3.defaults["decoder"] == "none"
    framework = make(clip, text)  # seeds with 0
    width, dim, channels = 16, clip.embed_dim, clip.visual.layer4[-1].conv3.out_channels
    torch.manual_seed(0)
    aspp = ASPP(channels, (6, 12, 18), width)
    embed = nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, dim, 1)
    )
    expected = {f"aspp.{key}": value for key, value in aspp.state_dict().items()}
    expected |= {f"embed.{key}": value for key, value in embed.state_dict().items()}
    expected["classifier.non_object"] = torch.randn(dim)
    expected["classifier.logit_scale"] = torch.tensor(math.log(1 / 0.07))
    found = {key: value for key, value in framework.state_dict().items() if not key.startswith("backbone.")}
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        res5 = framework.eval().features(images)[1]
        assert torch.equal(framework.features(images)[0], embed.eval()(aspp.eval()(res5)))


def test_the_backbone_computes_exactly_what_clips_does(clip: Clip, text: TextClassifier) -> None:
    framework = make(clip, text, output_stride=32).eval()
    images = torch.rand(1, 3, 64, 64)
    seen: list[Tensor] = []
    framework.aspp.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        framework.logits(images)
        expected = encode_stages(clip.visual, normalised(clip, images))["res5"]
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=0)
    assert "attnpool" in dict(clip.visual.named_children())  # the given encoder keeps its head
    assert clip.visual.attnpool is not None


@pytest.mark.parametrize("decoder", DECODERS)
def test_ignored_pixels_do_not_count(clip: Clip, text: TextClassifier, decoder: str) -> None:
    framework = undropped(clip, text, decoder=decoder)
    batch = batch_of()
    assert batch.labels is not None
    loss = framework.losses(batch)["cross_entropy"]
    # Whatever would stand under the ignore label, the loss is the mean over the labelled pixels alone.
    with torch.no_grad():
        scores = framework.classifier(framework.features(batch.images)[0], text)
        pixels = framework.resize(scores, (64, 64))[:, [0, 2, 3, 4]].permute(0, 2, 3, 1)
    rows = torch.tensor([0, -1, 1, 2])
    counted = (batch.labels != 255) & (batch.labels != 1)
    expected = F.cross_entropy(pixels[counted], rows[batch.labels[counted]])
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_loss_is_a_plain_mean(clip: Clip, text: TextClassifier, decoder: str) -> None:
    """The same images twice in a batch: BatchNorm sees the same statistics, the loss is the same."""
    framework, batch = undropped(clip, text, decoder=decoder), batch_of()
    assert batch.labels is not None
    twice = Batch(batch.images.repeat(2, 1, 1, 1), batch.labels.repeat(2, 1, 1))
    once = framework.losses(batch)["cross_entropy"]
    torch.testing.assert_close(framework.losses(twice)["cross_entropy"], once, rtol=1e-4, atol=1e-5)


def test_class_0_is_trained(clip: Clip, text: TextClassifier) -> None:
    """COCO's person has index 0; so has unlabelled in other encodings. Here it is a class like any other."""
    framework = undropped(clip, text)
    images = torch.rand(2, 3, 64, 64)
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    loss = framework.losses(Batch(images, labels))["cross_entropy"]
    scores = framework.resize(framework.classifier(framework.features(images)[0], text), (64, 64))[:, [0, 2, 3, 4]]
    torch.testing.assert_close(loss, -scores.log_softmax(1)[:, 0].mean(), rtol=1e-4, atol=1e-5)


def test_novel_pixels_and_names_do_not_train(clip: Clip, vocabulary: Vocabulary, text: TextClassifier) -> None:
    batch = batch_of()
    assert batch.labels is not None
    moved = text.embeddings.clone()
    moved[2] = -moved[2]  # the row of the novel class
    relabelled = batch.labels.clone()
    relabelled[batch.labels == 1] = 255
    losses = [
        undropped(clip, one).losses(Batch(batch.images, labels))["cross_entropy"].item()
        for one, labels in (
            (text, batch.labels),
            (TextClassifier(moved, text.owner, vocabulary), batch.labels),
            (text, relabelled),
        )
    ]
    assert losses[0] == losses[1] == losses[2]


def test_a_batch_without_labelled_pixels_is_harmless(clip: Clip, text: TextClassifier) -> None:
    framework = make(clip, text).train()
    labels = torch.full((2, 64, 64), 255)
    loss = framework(Batch(torch.rand(2, 3, 64, 64), labels))["cross_entropy"]
    loss.backward()
    gradients = [p.grad for p in framework.parameters() if p.grad is not None]
    assert loss.item() == 0 and gradients
    assert all(gradient.abs().max() == 0 for gradient in gradients)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("path", PATHS)
def test_every_trainable_parameter_gets_a_gradient(clip: Clip, text: TextClassifier, path: str, decoder: str) -> None:
    """Those of the image-pool branch, which upstream computes and drops, too."""
    framework = make(clip, text, clip_path=path, decoder=decoder).train()
    framework(batch_of())["cross_entropy"].backward()
    for name, parameter in framework.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(not name.startswith("clip_path") for name, p in framework.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("decoder", DECODERS)
def test_training_lowers_the_loss(clip: Clip, text: TextClassifier, decoder: str) -> None:
    framework = undropped(clip, text, decoder=decoder)
    batch = batch_of()
    assert batch.labels is not None
    batch.labels[batch.labels != 255] = 2
    optimizer = torch.optim.AdamW(framework.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = framework(batch)["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_vocabulary_can_be_swapped(clip: Clip, text: TextClassifier) -> None:
    framework = make(clip, text).eval()
    order = [3, 0, 2, 1]
    names = [text.vocabulary.classes[number][0] for number in order]
    first_rows = [0, 2, 3, 4]
    swapped = TextClassifier(
        text.embeddings[[first_rows[number] for number in order]],
        torch.arange(4),
        Vocabulary.from_names("swapped", names),
    )
    single = TextClassifier(
        text.embeddings[first_rows], torch.arange(4), Vocabulary.from_names("one", ["a", "b", "c", "d"])
    )
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(framework.logits(images, swapped), framework.logits(images, single)[:, order])
        larger = make_text(Vocabulary.from_names("large", [f"c{number}" for number in range(11)]), clip.embed_dim)
        assert framework.segment(images, larger).shape == (1, 11, 64, 64)


@pytest.mark.parametrize("decoder", DECODERS)
def test_clip_path_sum_starts_at_clips_own_answer(clip: Clip, text: TextClassifier, decoder: str) -> None:
    framework = make(clip, text, clip_path="sum", output_stride=32, decoder=decoder).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        res5 = encode_stages(clip.visual, normalised(clip, images))["res5"]
        if decoder == "plus":
            res5 = F.interpolate(res5, (16, 24), mode="bilinear")
        dense = F.normalize(encode_dense(clip.visual, res5), dim=1)
        rows = torch.einsum("behw,re->brhw", dense, text.embeddings) / 0.07
        expected = torch.stack([rows[:, :2].amax(1), rows[:, 2], rows[:, 3], rows[:, 4]], 1)
        torch.testing.assert_close(framework.logits(images), expected, rtol=1e-4, atol=1e-4)


def test_clip_path_sum_weighs_clips_embedding(clip: Clip, text: TextClassifier) -> None:
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        one, three = (make(clip, text, clip_path="sum", clip_weight=w).eval().features(images)[0] for w in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)  # the head starts at zero
    assert float(one.norm(dim=1).max()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_ensemble_weights_of_0_and_1_give_one_classifier(clip: Clip, text: TextClassifier, decoder: str) -> None:
    images = torch.rand(1, 3, 64, 64)

    def logits(**options: Any) -> Tensor:
        return make(clip, text, decoder=decoder, **options).eval().logits(images)

    with torch.no_grad():
        plain = logits().log_softmax(1)
        head = logits(clip_path="ensemble", alpha=0.0, beta=0.0)
        own = [logits(clip_path="ensemble", alpha=1.0, beta=1.0, clip_scale=scale) for scale in (50.0, 100.0)]
        sides = [logits(clip_path="ensemble", alpha=1.0, beta=beta) for beta in (0.0, 1.0)]
    torch.testing.assert_close(head, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(own[0].argmax(1), own[1].argmax(1))
    differences = [(scores[:, :1] - scores[:, 1:]) for scores in own]  # of log probabilities: they grow with the scale
    torch.testing.assert_close(differences[1], 2 * differences[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(own[0], plain, atol=1e-2)
    # Only the novel class, 1, goes by beta.
    torch.testing.assert_close(sides[0][:, 1], plain[:, 1], rtol=1e-4, atol=1e-4)
    assert torch.equal(sides[0][:, [0, 2, 3]], sides[1][:, [0, 2, 3]])


def test_text_and_normalisation_stay_out_of_the_state(clip: Clip, text: TextClassifier) -> None:
    framework = make(clip, text)
    keys = set(framework.state_dict())
    assert "backbone.layer1.0.conv1.weight" in keys
    assert not [key for key in keys if key.startswith(("text_", "pixel_")) or "attnpool" in key]
    torch.testing.assert_close(framework.text.embeddings, text.embeddings)
    assert framework.to(torch.float64).text.vocabulary is text.vocabulary


def test_bad_input(clip: Clip, text: TextClassifier, vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="needs labels"):
        make(clip, text).losses(Batch(torch.rand(2, 3, 32, 32)))
    with pytest.raises(InputError, match=r"output stride 4"):
        make(clip, text, output_stride=4)
    with pytest.raises(InputError, match=r"clip_path = 'both'; use 'none', 'sum', 'ensemble'"):
        make(clip, text, clip_path="both")
    with pytest.raises(InputError, match=r"decoder = 'v3\+'; use 'none', 'plus'"):
        make(clip, text, decoder="v3+")
    for option in ("width", "low_width"):
        with pytest.raises(InputError, match=rf"option {option} = 0; at least 1"):
            make(clip, text, **{option: 0})
    for option in ("dropout", "last_dropout"):
        with pytest.raises(InputError, match=rf"option {option} = 1.0; a probability from 0"):
            make(clip, text, **{option: 1.0})
    with pytest.raises(MismatchError, match="one CLIP"):
        make(clip, make_text(vocabulary, clip.embed_dim + 1))
    encoder = copy.deepcopy(clip.visual)
    encoder.attnpool = None
    with pytest.raises(InputError, match="needs a CLIP ResNet"):
        DeepLabV3(encoder=encoder, mean=clip.mean, std=clip.std, text=text)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_batch_of_one_cannot_train_but_is_segmented(clip: Clip, text: TextClassifier, decoder: str) -> None:
    framework, alone = make(clip, text, decoder=decoder).train(), batch_of(images=1)
    with pytest.raises(InputError, match="at least 2 images"):
        framework.losses(alone)
    assert framework.eval().segment(alone.images).shape == (1, 4, 64, 64)
    assert torch.isfinite(framework.losses(alone)["cross_entropy"])  # frozen norms do not mind


NEWER = ("decoder", "low_width", "last_dropout", "templates")


def test_a_checkpoint_without_newer_options_restores(clip: Clip, text: TextClassifier, tmp_path: Path) -> None:
    framework = make(clip, text, clip_path="sum", output_stride=8).eval()
    recorded = {k: v for k, v in framework.options.items() if k not in NEWER}
    assert len(recorded) == 8
    file = tmp_path / "old.safetensors"
    checkpoint = Checkpoint(
        framework="deeplabv3",
        options=recorded,
        state=framework.state_dict(),
        mask=None,
        text_embeddings=text.embeddings,
        text_owner=text.owner,
        vocabulary=text.vocabulary,
        clip=clip.describe(),
        recipe={},
        provenance={},
        text_encoder=None,
    )
    save_checkpoint(file, checkpoint)
    again = registry.restore(load_checkpoint(file))
    assert again.options["decoder"] == "none"
    images = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        assert torch.equal(again.segment(images), framework.segment(images))
    with pytest.raises(MismatchError, match="recorded options do not belong together"):
        checkpoint.options = {**recorded, "decoder": "plus"}
        registry.restore(checkpoint)


@pytest.mark.parametrize("decoder", DECODERS)
def test_runs_on_meta_tensors(vocabulary: Vocabulary, decoder: str) -> None:
    with torch.device("meta"):
        encoder = create_image_encoder("RN50")
        text = TextClassifier(torch.empty(5, 1024), torch.empty(5, dtype=torch.long), vocabulary)
        for path in PATHS:
            options = {"clip_path": path, "decoder": decoder}
            framework = DeepLabV3(encoder=encoder, mean=(0.5,) * 3, std=(0.2,) * 3, text=text, options=options).eval()
            assert framework.segment(torch.empty(1, 3, 800, 1202)).shape == (1, 4, 800, 1202)
