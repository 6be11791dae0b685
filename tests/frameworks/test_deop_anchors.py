"""Anchors and mask pooling against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.frameworks.deop_anchors import AnchorClassifier, pool_masks, sine_positions

DIM, HEADS, QUERIES = 16, 4, 5


def anchors(**options: int) -> AnchorClassifier:
    torch.manual_seed(0)
    sizes = {"queries": QUERIES, "layers": 1, "heads": HEADS, "ffn": 24, **options}
    return AnchorClassifier(DIM, dropout=0.0, **sizes).eval()


def unit_features(height: int = 3, width: int = 4, batch: int = 2) -> Tensor:
    values = torch.randn(batch, DIM, height, width, generator=torch.Generator().manual_seed(1))
    return F.normalize(values, dim=1)


def soft_masks(count: int = QUERIES, height: int = 3, width: int = 4, batch: int = 2) -> Tensor:
    return torch.rand(batch, count, height, width, generator=torch.Generator().manual_seed(2))


def test_the_embedding_is_the_sum_of_raw_features_under_the_heat_maps() -> None:
    model, features, masks = anchors(), unit_features(), soft_masks()
    maps = model.heat_maps(features, masks)
    assert maps.shape == (2, HEADS, QUERIES, 3, 4)
    expected = torch.zeros(2, QUERIES, DIM)
    for head in range(HEADS):
        for channel in range(head * DIM // HEADS, (head + 1) * DIM // HEADS):
            for query in range(QUERIES):
                expected[:, query, channel] = (maps[:, head, query] * features[:, channel]).sum((1, 2))
    expected = expected / expected.norm(dim=2, keepdim=True)
    assert torch.allclose(model(features, masks), expected, atol=1e-6)


def test_heat_maps_are_a_softmax_over_all_patches_cut_to_the_mask_afterwards() -> None:
    model, features = anchors(), unit_features()
    everything = model.heat_maps(features, torch.ones(2, QUERIES, 3, 4))
    assert torch.allclose(everything.sum((3, 4)), torch.ones(2, HEADS, QUERIES), atol=1e-6)
    masks = soft_masks()
    assert torch.allclose(model.heat_maps(features, masks), everything * masks[:, None], atol=1e-7)


def test_the_last_attention_by_hand_without_other_layers() -> None:
    model, features = anchors(layers=0), unit_features(batch=1)
    memory = features.flatten(2)[0].t()
    located = memory + sine_positions(3, 4, DIM)
    places = model.queries
    # The state is 0, so self-attention mixes values of 0: what is left are its biases.
    bias = model.self_attention.in_proj_bias[2 * DIM :]
    mixed = bias @ model.self_attention.out_proj.weight.t() + model.self_attention.out_proj.bias
    state = F.layer_norm(mixed, (DIM,), model.norm.weight, model.norm.bias)
    query = (state + places) @ model.query.weight.t() + model.query.bias
    key = located @ model.key.weight.t() + model.key.bias
    size = DIM // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        weights = (query[:, part] @ key[:, part].t() / math.sqrt(size)).softmax(1)
        found = model.heat_maps(features, torch.ones(1, QUERIES, 3, 4))[0, head].flatten(1)
        assert torch.allclose(found, weights, atol=1e-6)


def test_features_outside_a_mask_do_not_enter_its_values() -> None:
    model, features = anchors(layers=0), unit_features()
    masks = torch.zeros(2, QUERIES, 3, 4)
    masks[..., :2] = 1
    maps = model.heat_maps(features, masks)
    changed = features.clone()
    changed[..., 2:] = 9
    values = torch.einsum("banhw,behw->bane", maps, features)
    assert torch.equal(values, torch.einsum("banhw,behw->bane", maps, changed))


def test_fewer_proposals_take_the_first_queries_and_chosen_ones_any() -> None:
    model, features, masks = anchors(), unit_features(), soft_masks()
    order = torch.tensor([[4, 0, 3], [1, 1, 2]])
    chosen = model(features, masks[:, :3], order)
    for row in range(2):
        for place, query in enumerate(order[row].tolist()):
            whole = torch.ones(2, QUERIES, 3, 4) * masks[:, place : place + 1]
            assert torch.allclose(chosen[row, place], model(features, whole)[row, query], atol=1e-6)
    assert model(features, masks[:, :3]).shape == (2, 3, DIM)


def test_embeddings_have_unit_length_and_empty_masks_none() -> None:
    model, features, masks = anchors(), unit_features(), soft_masks()
    masks[0, 1] = 0
    for found in (model(features, masks), pool_masks(features, masks)):
        lengths = found.norm(dim=2)
        assert lengths[0, 1] == 0 and torch.isfinite(found).all()
        lengths[0, 1] = 1
        assert torch.allclose(lengths, torch.ones(2, QUERIES), atol=1e-6)


def test_pooling_by_masks_by_hand() -> None:
    features = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])
    masks = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]], [[0.5, 0.25]]]])
    expected = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [1.5, 1.0]]])
    expected[0, 2] /= expected[0, 2].norm()
    assert torch.allclose(pool_masks(features, masks), expected)


def test_gradients_flow_into_queries_and_features_but_not_through_a_value_projection() -> None:
    model, features = anchors(), unit_features().requires_grad_()
    model(features, soft_masks()).sum().backward()
    assert features.grad is not None and features.grad.abs().sum() > 0
    assert model.queries.grad is not None and model.queries.grad.abs().sum() > 0
    names = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not names


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3)])
def test_positions_by_hand(height: int, width: int) -> None:
    found = sine_positions(height, width, 8).reshape(height, width, 8)
    for row in range(height):
        for column in range(width):
            for offset, place, length in ((0, row, height), (4, column, width)):
                angle = (place + 1) / length * 2 * math.pi
                waves = [math.sin(angle), math.cos(angle), math.sin(angle / 100), math.cos(angle / 100)]
                assert torch.allclose(found[row, column, offset : offset + 4], torch.tensor(waves), atol=1e-4)
