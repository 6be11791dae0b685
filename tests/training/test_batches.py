from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest
import torch

from ovstrans.datasets.sample import Sample
from ovstrans.datasets.scenes.dataset import Scenes
from ovstrans.errors import InputError
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training.batches import Labelled, training_batches
from ovstrans.training.distributed import World
from ovstrans.vocabulary.vocabulary import Vocabulary

Tiny = Callable[..., FinetuneRecipe]
ALONE = World(0, 1, torch.device("cpu"))


class Counted(Scenes):
    """`scenes` that counts what is read."""

    def __init__(self) -> None:
        super().__init__("train", size=32)
        self.reads: Counter[int] = Counter()

    def __getitem__(self, index: int) -> Sample:
        self.reads[index] += 1
        return super().__getitem__(index)


def test_a_batch_is_what_the_framework_takes(tiny: Tiny) -> None:
    batch = next(training_batches(Labelled(Scenes("train", size=48)), tiny("augment.crop=40"), ALONE))
    assert batch.labels is not None
    assert (batch.images.shape, batch.images.dtype) == ((4, 3, 40, 40), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype, batch.ignore) == ((4, 40, 40), torch.int64, 255)
    assert 0.0 <= batch.images.min() < batch.images.max() <= 1.0
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_processes_share_the_very_images_that_one_would_take(tiny: Tiny) -> None:
    settings = tiny("augment.crop=32")
    whole = list(islice(training_batches(Labelled(Scenes("train", size=32)), settings, ALONE), 2))
    halves = [
        list(
            islice(
                training_batches(Labelled(Scenes("train", size=32)), settings, World(rank, 2, torch.device("cpu"))), 2
            )
        )
        for rank in range(2)
    ]
    for step in range(2):
        together = {image.numpy().tobytes() for rank in range(2) for image in halves[rank][step].images}
        assert together == {image.numpy().tobytes() for image in whole[step].images}
        assert len(halves[0][step].images) == 2


def test_a_stream_goes_on_where_another_stopped(tiny: Tiny) -> None:
    settings = tiny("augment.crop=32")
    through = list(islice(training_batches(Labelled(Scenes("train", size=32), limit=5), settings, ALONE), 4))
    later = list(islice(training_batches(Labelled(Scenes("train", size=32), limit=5), settings, ALONE, start=2), 2))
    assert all(torch.equal(a.images, b.images) for a, b in zip(through[2:], later, strict=True))


def test_limit_and_cache(tiny: Tiny) -> None:
    cached, plain = Counted(), Counted()
    first = list(islice(training_batches(Labelled(cached, limit=3, cache=True), tiny("augment.crop=32"), ALONE), 3))
    again = list(islice(training_batches(Labelled(plain, limit=3), tiny("augment.crop=32"), ALONE), 3))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert cached.reads == {0: 1, 1: 1, 2: 1}
    assert sum(plain.reads.values()) == 13 and set(plain.reads) == {0, 1, 2}  # one to look, 3 x 4


class Unlabelled:
    name, split, ignore = "pictures", "all", 255
    published_size, videos = None, ()
    vocabulary = Vocabulary("pictures", ())

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), name="one")


def test_novel_classes_alone_teach_nothing() -> None:
    source = Scenes("train", size=32)
    source.vocabulary = replace(source.vocabulary, novel=frozenset(range(len(source.vocabulary))))
    with pytest.raises(InputError, match=r"scenes:train: all \d+ classes are novel.*take some out"):
        Labelled(source)


@pytest.mark.parametrize(("count", "words"), [(0, "no image"), (2, "one has no label map")])
def test_what_cannot_train_is_refused_at_once(count: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Labelled(Unlabelled(count))
