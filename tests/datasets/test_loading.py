"""Batches: every sample once an epoch over all ranks, the same on resume and with workers."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovstrans.datasets.augment import Augment
from ovstrans.datasets.loading import collate, draw_epoch_order, make_generator, step_items, stream_batches
from ovstrans.datasets.sample import Sample
from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import Vocabulary


class Numbers:
    """Image i is filled with i; labelled i % 3, one pixel ignored."""

    name, split, ignore = "numbers", "train", 255
    vocabulary = Vocabulary(name="numbers", classes=(("a",), ("b",), ("c",)))

    def __init__(self, length: int = 10, broken: int = -1, labels: bool = True) -> None:
        self.length, self.broken, self.labels = length, broken, labels

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise InputError(f"image {index}: broken")
        height = 12 if self.broken == -2 and index == 0 else 16
        label = torch.full((height, 20), index % 3, dtype=torch.uint8)
        label[0, 0] = 255
        image = torch.full((3, height, 20), index, dtype=torch.uint8)
        return Sample(image=image, label=label if self.labels else None, name=str(index))


def names(count: int, **options: Any) -> list[tuple[str, ...]]:
    return [batch.names for batch in islice(stream_batches(Numbers(), **options), count)]


@given(n=st.integers(1, 40), batch=st.integers(1, 7), world=st.integers(1, 4), epochs=st.integers(1, 3))
def test_every_sample_comes_once_an_epoch_over_all_ranks(n: int, batch: int, world: int, epochs: int) -> None:
    steps = -(-n * epochs // (batch * world))
    items = [
        item
        for step in range(steps)
        for rank in range(world)
        for item in step_items(step, n=n, batch_size=batch, seed=1, rank=rank, world_size=world)
    ]
    assert len(items) == steps * batch * world
    for epoch in range(epochs):
        assert sorted(index for e, index in items if e == epoch) == list(range(n))


@given(start=st.integers(0, 30), rank=st.integers(0, 1))
def test_a_resumed_sequence_goes_on_where_it_stopped(start: int, rank: int) -> None:
    options: dict[str, Any] = {"batch_size": 3, "seed": 5, "rank": rank, "world_size": 2}
    assert names(start + 4, **options)[start:] == names(4, start_step=start, **options)


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(draw_epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] == tuple(draw_epoch_order(50, 0, 0))


def test_ranks_share_the_batch_of_one() -> None:
    """Two ranks with batches of 2 see together what one rank with a batch of 4 sees."""
    alone = names(5, batch_size=4, seed=2)
    first, second = (names(5, batch_size=2, seed=2, rank=rank, world_size=2) for rank in (0, 1))
    assert [sorted(a) for a in alone] == [sorted(a + b) for a, b in zip(first, second, strict=True)]


def test_batches_are_floats_from_0_to_1_and_long_labels() -> None:
    batch = next(stream_batches(Numbers(), batch_size=4, seed=0))
    assert batch.images.shape == (4, 3, 16, 20) and batch.images.dtype == torch.float32
    assert batch.labels is not None and batch.labels.shape == (4, 16, 20) and batch.labels.dtype == torch.int64
    for name, image, label in zip(batch.names, batch.images, batch.labels, strict=True):
        assert torch.allclose(image * 255, torch.full_like(image, int(name)))
        assert int(label[1, 1]) == int(name) % 3 and int(label[0, 0]) == 255


def test_unlabelled_samples_make_unlabelled_batches() -> None:
    assert next(stream_batches(Numbers(labels=False), batch_size=2)).labels is None


def test_one_unlabelled_sample_makes_the_batch_unlabelled() -> None:
    assert collate([Numbers()[0], Numbers(labels=False)[1]]).labels is None


def test_chosen_indices_alone_are_used() -> None:
    seen = {name for batch in names(6, batch_size=3, indices=[2, 5, 7]) for name in batch}
    assert seen == {"2", "5", "7"}


def test_a_sample_is_augmented_by_its_index_in_the_dataset() -> None:
    """Which other samples are used does not change the augmentation."""

    def draw(sample: Sample, generator: torch.Generator) -> Sample:
        return replace(sample, caption=str(float(torch.rand((), generator=generator))))

    batch = next(stream_batches(Numbers(), batch_size=3, seed=4, transform=draw, indices=[2, 5, 7]))
    for name, caption in zip(batch.names, batch.captions, strict=True):
        assert caption == str(float(torch.rand((), generator=make_generator(4, (0, int(name))))))


def test_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    transform = Augment(scale=(0.5, 2.0)).transform(10, 255)

    def images(**options: Any) -> list[torch.Tensor]:
        batches = stream_batches(Numbers(), batch_size=4, transform=transform, **options)
        return [batch.images for batch in islice(batches, 6)]

    assert all(torch.equal(a, b) for a, b in zip(images(seed=1)[3:], images(seed=1, start_step=3)[:3], strict=True))
    draws = {float(torch.rand((), generator=make_generator(s, (e, i)))) for s in (0, 1) for e in (0, 1) for i in (0, 1)}
    assert len(draws) == 8


def test_workers_change_nothing_and_leave_the_global_generator_alone() -> None:
    transform = Augment(jitter=0.3).transform(12, 255)
    state = torch.get_rng_state()

    def read(workers: int) -> list[torch.Tensor]:
        batches = stream_batches(Numbers(), batch_size=3, seed=4, transform=transform, workers=workers, start_step=2)
        return [batch.images for batch in islice(batches, 5)]

    assert all(torch.equal(a, b) for a, b in zip(read(0), read(2), strict=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_arrives_as_one_line(workers: int) -> None:
    with pytest.raises(InputError) as caught:
        list(islice(stream_batches(Numbers(broken=3), batch_size=2, workers=workers), 5))
    assert str(caught.value) == "image 3: broken"


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match="20x12, 20x16"):
        list(islice(stream_batches(Numbers(broken=-2), batch_size=5), 2))


def test_an_empty_dataset_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="numbers:train: no image"):
        stream_batches(Numbers(0), batch_size=2)


def test_torchs_advice_on_workers_is_kept_from_the_user(recwarn: pytest.WarningsRecorder) -> None:
    from ovstrans.datasets.loading import _read_ahead

    _read_ahead(None, iter([]), 999)  # type: ignore[arg-type]  # nothing is read
    assert not [each for each in recwarn if "DataLoader" in str(each.message)]
