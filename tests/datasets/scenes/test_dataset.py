"""Generated scenes: what the README promises of them."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovstrans.datasets.scenes.dataset import (
    COLORS,
    NOVEL_SHAPES,
    NOVEL_STUFF,
    SPLITS,
    Ground,
    Scenes,
    Thing,
    draw_scene,
    make_vocabulary,
)
from ovstrans.datasets.scenes.drawing import SHAPES, STUFF, draw_coverage
from ovstrans.errors import InputError


@given(st.sampled_from(sorted(SPLITS)), st.integers(0, 10_000), st.integers(0, 5), st.booleans())
@settings(max_examples=25, deadline=None)
def test_an_image_is_a_function_of_split_index_and_seed(split, index, seed, shift):
    first, again = (draw_scene(split, index, seed, 48, 64, shift) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.caption == again.caption
    assert first.image.shape == (48, 64, 3)
    assert first.segment_map.shape == (48, 64)


def test_splits_and_seeds_never_share_an_image():
    seen = [
        hashlib.sha256(draw_scene(split, index, seed, 32, 32, shift).image.tobytes()).digest()
        for split in SPLITS
        for seed in (0, 1)
        for shift in (False, True)
        for index in range(6)
    ]
    assert len(set(seen)) == len(seen)


@given(st.integers(0, 3000))
@settings(max_examples=20, deadline=None)
def test_maps_and_segments_agree(index):
    data = Scenes("val", size=64, length=4000)
    sample = data[index]
    label, segments = sample.label.numpy(), sample.segment_map.numpy()
    assert label.max() < len(data.vocabulary)  # every pixel belongs to something
    assert sum(segment.area for segment in sample.segments) == label.size
    for segment in sample.segments:
        inside = segments == segment.id
        assert inside.sum() == segment.area
        assert set(np.unique(label[inside])) == {segment.class_index}
        assert segment.isthing == (segment.class_index in data.vocabulary.things)
        noun = segment.attributes.get("shape") or segment.attributes["stuff"]
        assert data.vocabulary.names[segment.class_index] == noun


def test_novel_classes_are_never_in_the_training_split():
    words = make_vocabulary()
    assert {words.names[number] for number in words.novel} == NOVEL_SHAPES | NOVEL_STUFF
    found = {split: set() for split in ("train", "val")}
    for split, seen in found.items():
        data = Scenes(split, size=32, length=120)
        for index in range(120):
            seen |= set(np.unique(data[index].label))
    assert not found["train"] & words.novel
    assert found["val"] >= words.novel
    assert found["train"] == set(range(len(words))) - words.novel


def test_every_caption_is_true_and_names_something():
    for index in range(150):
        scene = draw_scene("pretrain", index, 0, 48, 48)
        assert scene.caption
        nouns = {each.shape if isinstance(each, Thing) else each.stuff for each in scene.visible_elements()}
        said = set(scene.caption.split()) & (set(SHAPES) | set(STUFF))
        assert said
        assert said <= nouns


def test_attribute_vocabulary():
    data = Scenes("val", size=48, vocabulary_name="scenes-attr")
    assert len(data.vocabulary.things) == len(SHAPES) * len(COLORS) >= 100
    for index in range(10):
        for segment in data[index].segments:
            if segment.isthing:
                text = f"{segment.attributes['color']} {segment.attributes['shape']}"
                assert data.vocabulary.names[segment.class_index] == text


def test_there_are_enough_classes():
    assert len(SHAPES) >= 16
    assert len(STUFF) >= 8


def test_shapes_are_told_apart_under_rotation():
    """The best match of two outlines over all rotations: no two shapes overlap like one does with itself."""
    drawn = {}
    for shape in SHAPES:
        for turn in range(24):
            cover, _, _ = draw_coverage(shape, 20, turn * np.pi / 12, (21.0, 21.0))
            drawn[shape, turn] = cover[:43, :43]
    for first in SHAPES:
        for second in SHAPES:
            if first < second:
                still = drawn[first, 0]
                best = max(
                    np.minimum(still, drawn[second, t]).sum() / np.maximum(still, drawn[second, t]).sum()
                    for t in range(24)
                )
                assert best < 0.9, (first, second, best)


def test_visible_facts_leave_out_what_is_hidden():
    scene = draw_scene("single", 0, 0, 64, 64)
    assert [type(each) for each in scene.elements] == [Ground, Thing]
    scene.areas[1] = scene.elements[1].drawn // 4
    assert scene.visible_elements() == scene.elements[:1]


def test_wrong_use():
    with pytest.raises(InputError, match="no such split"):
        Scenes("nonsense")
    with pytest.raises(InputError, match="too small"):
        Scenes("val", size=8)
    with pytest.raises(InputError, match="scenes-attr"):
        Scenes("val", vocabulary_name="nouns")
    with pytest.raises(IndexError):
        Scenes("val", length=3)[3]
