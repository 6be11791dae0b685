"""Groups of weights: their scores, their masks and their sizes, for odd shapes too."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.masks.granularity import Groups, make_groups
from ovstrans.recipes.schema import GRANULARITIES

shapes = st.one_of(
    st.tuples(st.integers(1, 13), st.integers(1, 9)),
    st.tuples(st.integers(1, 13), st.integers(1, 9), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
)


def members(shape: tuple[int, ...], granularity: str) -> list[list[int]]:
    """Positions of the weights of every group, written out."""
    rows, each = shape[0], math.prod(shape[1:])
    if granularity == "filter":
        return [[row * each + place for place in range(each)] for row in range(rows)]
    if granularity != "4x1":
        return [[place] for place in range(rows * each)]
    return [
        [row * each + place for row in range(first, min(first + 4, rows))]
        for first in range(0, rows, 4)
        for place in range(each)
    ]


@given(shapes, st.sampled_from(GRANULARITIES), st.integers(0, 2**31))
def test_groups_are_those_written_out(shape: tuple[int, ...], granularity: str, seed: int) -> None:
    groups, written = Groups(shape, granularity), members(shape, granularity)
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    assert groups.count == len(written)
    sizes = groups.sizes()
    assert (sizes.tolist() if isinstance(sizes, torch.Tensor) else [sizes] * groups.count) == list(map(len, written))
    assert groups.size == max(map(len, written)) and groups.weights == scores.numel()
    flat = scores.flatten()
    expected = [float(flat[each].double().square().mean().sqrt()) for each in written]
    assert torch.allclose(groups.reduce(scores), torch.tensor(expected), rtol=1e-6)
    chosen = torch.rand(groups.count, generator=torch.Generator().manual_seed(seed + 1)) < 0.4
    mask = groups.expand(chosen)
    kept = {place for number, each in enumerate(written) if chosen[number] for place in each}
    assert set(mask.flatten().nonzero().flatten().tolist()) == kept and mask.shape == shape
    assert torch.equal(groups.alive(mask), chosen)
    if not groups.fixed:
        assert groups.fits(mask)


@given(shapes, st.integers(0, 2**31))
def test_two_of_four_protects_the_two_largest_of_every_four_inputs(shape: tuple[int, ...], seed: int) -> None:
    groups = Groups(shape, "2:4")
    keys = torch.randint(0, 4, (groups.count,), generator=torch.Generator().manual_seed(seed))
    mask = groups.expand(groups.protected(keys))
    if shape[1] % 4:
        assert mask.all() and groups.least == groups.weights and groups.fits(mask)
        return
    assert int(mask.sum()) == groups.least == groups.weights // 2 and groups.fits(mask)
    grid = keys.reshape(shape[0], shape[1], -1)
    for row in range(shape[0]):
        for first in range(0, shape[1], 4):
            for tap in range(grid.shape[2]):
                four = grid[row, first : first + 4, tap].tolist()
                best = sorted(range(4), key=lambda place: (-four[place], place))[:2]
                own = mask.reshape(grid.shape)[row, first : first + 4, tap]
                assert own.nonzero().flatten().tolist() == sorted(best)


@pytest.mark.parametrize(("granularity", "shape"), [("4x1", (6, 2)), ("filter", (3, 2, 1, 1)), ("2:4", (2, 8))])
def test_a_mask_of_another_granularity_does_not_fit(granularity: str, shape: tuple[int, ...]) -> None:
    mask = torch.zeros(shape, dtype=torch.bool)
    assert Groups(shape, granularity).fits(mask)
    mask.view(-1)[-3:] = True
    assert not Groups(shape, granularity).fits(mask) and Groups(shape).fits(mask)


def test_the_last_block_holds_the_channels_that_are_left() -> None:
    groups = Groups((6, 3), "4x1")
    mask = groups.expand(torch.tensor([True, False, False, False, True, False]))
    assert mask.nonzero().tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 1], [5, 1]]
    assert groups.sizes().tolist() == [4, 4, 4, 2, 2, 2]  # type: ignore[union-attr]
    assert Groups((2, 3), "4x1").size == 2


def test_groups_by_name() -> None:
    groups = make_groups({"a.weight": torch.ones(4, 2), "b": torch.ones(2)}, "filter")
    assert groups == {"a.weight": Groups((4, 2), "filter"), "b": Groups((2,), "filter")}
