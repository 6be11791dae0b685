from __future__ import annotations

import pytest
import torch

from ovstrans.errors import InputError
from ovstrans.pruning.rounds import Images
from tests.pruning.conftest import Pictures


def make(pictures: Pictures, **changes: object) -> Images:
    settings = {"batch": 5, "size": 24, "seed": 3, **changes}
    return Images(pictures, **settings)  # type: ignore[arg-type]


def test_a_batch_depends_on_the_step_alone(pictures: Pictures) -> None:
    one, other = make(pictures), make(pictures)
    wanted = [one.views(step) for step in range(6)]
    assert torch.equal(other.views(4), wanted[4])  # without those before
    streamed = list(other.stream(2, 6))
    assert all(torch.equal(a.images, b) for a, b in zip(streamed, wanted[2:], strict=True))


def test_steps_and_seeds_differ(pictures: Pictures) -> None:
    images = make(pictures)
    assert not torch.equal(images.views(0), images.views(12))  # the same epoch place, another view
    assert not torch.equal(images.views(0), make(pictures, seed=4).views(0))


def test_every_image_once_an_epoch(pictures: Pictures) -> None:
    images = make(pictures)
    seen = [index for step in range(12) for index in images.indices(step)]
    for epoch in range(5):
        assert sorted(seen[12 * epoch : 12 * epoch + 12]) == list(range(12))
    assert seen[:12] != seen[12:24]


def test_limit_takes_the_first(pictures: Pictures) -> None:
    images = make(pictures, limit=4)
    assert {index for step in range(8) for index in images.indices(step)} == {0, 1, 2, 3}
    assert make(pictures, limit=99).count == 12


def test_values_and_shape(pictures: Pictures) -> None:
    views = make(pictures).views(0)
    assert views.shape == (5, 3, 24, 24) and views.dtype == torch.float32
    assert float(views.min()) >= 0.0 and 0.5 < float(views.max()) <= 1.0


def test_whole_square_images_pass_unchanged() -> None:
    pictures = Pictures(count=6, height=24, width=24)
    images = make(pictures, min_crop=1.0, flip=0.0)
    wanted = pictures.images[images.indices(0)].float() / 255
    assert torch.equal(images.views(0), wanted)


def test_flips_half() -> None:
    pictures = Pictures(count=40, height=24, width=24)
    images = make(pictures, batch=40, min_crop=1.0, flip=0.5)
    wanted = pictures.images[images.indices(0)].float() / 255
    views = images.views(0)
    same = sum(torch.equal(view, want) for view, want in zip(views, wanted, strict=True))
    mirrored = sum(torch.equal(view, want.flip(-1)) for view, want in zip(views, wanted, strict=True))
    assert same + mirrored == 40 and 8 < same < 32


@pytest.mark.parametrize(("flip", "same"), [(0.0, True), (1.0, False)])
def test_flips_never_or_always(flip: float, same: bool) -> None:
    pictures = Pictures(count=20, height=24, width=24)
    images = make(pictures, batch=20, min_crop=1.0, flip=flip)
    wanted = pictures.images[images.indices(0)].float() / 255
    assert torch.equal(images.views(0), wanted if same else wanted.flip(-1))


def test_neither_workers_nor_cache_change_what_is_seen(pictures: Pictures) -> None:
    wanted = [make(pictures).views(step) for step in range(4)]
    for workers, cache in ((0, True), (0, False), (3, False)):
        found = list(make(pictures, workers=workers, cache=cache).stream(0, 4))
        assert all(torch.equal(each.images, want) for each, want in zip(found, wanted, strict=True))
    pictures.read.clear()
    list(make(pictures, workers=0, cache=False).stream(0, 10))
    assert len(pictures.read) == 50


def test_images_are_read_once(pictures: Pictures) -> None:
    images = make(pictures)
    for step in range(10):
        images.views(step)
    assert sorted(pictures.read) == list(range(12))


def test_small_and_large_images_fit() -> None:
    assert make(Pictures(count=5, height=8, width=200)).views(0).shape == (5, 3, 24, 24)
    assert make(Pictures(count=5, height=300, width=90)).views(0).shape == (5, 3, 24, 24)


def test_no_image() -> None:
    with pytest.raises(InputError, match="no image"):
        make(Pictures(count=0))


def test_a_broken_image_ends_the_stream() -> None:
    class Broken(Pictures):
        def __getitem__(self, index: int):
            raise InputError("x.jpg: a broken image")

    with pytest.raises(InputError, match=r"x\.jpg"):
        next(make(Broken()).stream(0, 3))
