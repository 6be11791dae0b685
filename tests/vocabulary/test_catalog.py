"""The vocabularies of published datasets: sizes, order, names, and what a user's copy of one does."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ovstrans.errors import InputError
from ovstrans.vocabulary.catalog import (
    FOLDER,
    SPLITS,
    list_published_vocabularies,
    load_published_vocabulary,
    load_vocabulary,
)
from ovstrans.vocabulary.files import read_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary

NAMES = list_published_vocabularies()

COUNTS = {
    # classes, synonyms in FC-CLIP's lists, of which repeats within a class (which are dropped here)
    "ade20k-150": (150, 403, 1),
    "ade20k-847": (847, 1342, 1),
    "cityscapes": (19, 60, 0),
    "coco-panoptic": (133, 254, 0),
    "lvis-1203": (1203, 1825, 0),
    "coco-stuff": (171, 328, 0),
    "context-459": (459, 559, 0),
    "context-59": (59, 160, 0),
    "mapillary-65": (65, 153, 1),
    "pascal-21": (21, 153, 2),
    "pascal-20": (20, 79, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_synonym_is_there_once(name: str) -> None:
    vocabulary = load_published_vocabulary(name)
    classes, listed, repeats = COUNTS[name]
    assert len(vocabulary) == classes
    assert sum(map(len, vocabulary.classes)) == listed - repeats
    assert all(len(set(synonyms)) == len(synonyms) for synonyms in vocabulary.classes)
    assert all(name == name.strip() for synonyms in vocabulary.classes for name in synonyms)
    assert not any("invalid_class_id" in synonyms for synonyms in vocabulary.classes)


@pytest.mark.parametrize(("name", "classes"), [("camvid", 11), ("vspw", 124), ("vipseg", 124)])
def test_vocabularies_that_fc_clip_lacks(name: str, classes: int) -> None:
    vocabulary = load_published_vocabulary(name)
    assert len(vocabulary) == classes and vocabulary.plain is not None
    assert not any("_" in name for synonyms in vocabulary.classes for name in synonyms)


@pytest.mark.parametrize("name", NAMES)
def test_every_published_vocabulary_is_consistent(name: str) -> None:
    vocabulary = load_published_vocabulary(name)
    assert vocabulary.name == name
    assert len(set(vocabulary.names)) == len(vocabulary) == len(vocabulary.classes)
    assert vocabulary.templates == ("{}",)
    assert (vocabulary.plain is None) == (name == "lvis-1203")
    assert vocabulary.palette().shape == (len(vocabulary), 3)
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary
    assert load_published_vocabulary(name) is vocabulary


@pytest.mark.parametrize(
    ("name", "index", "first", "plain"),
    [
        ("coco-stuff", 23, "giraffe", "giraffe"),
        ("coco-stuff", 80, "banner", "banner"),
        ("coco-stuff", 84, "building", "building-other"),
        ("coco-stuff", 170, "wood", "wood"),
        ("coco-panoptic", 0, "person", "person"),
        ("coco-panoptic", 79, "toothbrush", "toothbrush"),
        ("coco-panoptic", 80, "banner", "banner"),
        ("coco-panoptic", 87, "wood floor", "floor-wood"),
        ("coco-panoptic", 131, "wall", "wall-other-merged"),
        ("coco-panoptic", 132, "rug", "rug-merged"),
        ("ade20k-150", 0, "wall", "wall"),
        ("ade20k-150", 8, "windowpane", "window"),
        ("ade20k-150", 25, "house exterior", "house"),
        ("ade20k-150", 6, "road", "road, route"),
        ("ade20k-847", 11, "person", "person, individual, someone, somebody, mortal, soul"),
        ("ade20k-847", 846, "adding machine", "adding machine, totalizer, totaliser"),
        ("cityscapes", 0, "road", "road"),
        ("cityscapes", 18, "bicycle", "bicycle"),
        ("pascal-21", 0, "background", "background"),
        ("pascal-21", 15, "person", "person"),
        ("pascal-20", 0, "aeroplane", "aeroplane"),
        ("pascal-20", 19, "tvmonitor", "tvmonitor"),
        ("context-59", 40, "street", "road"),
        ("context-459", 61, "computer case", "case"),
        ("mapillary-65", 8, "crosswalk", "Crosswalk - Plain"),
        ("camvid", 6, "sign symbol", "sign symbol"),
        ("vspw", 0, "wall", "wall"),
        ("vspw", 7, "handrail", "handrail_or_fence"),
        ("vipseg", 123, "train", "train"),
    ],
)
def test_names_are_at_their_places(name: str, index: int, first: str, plain: str) -> None:
    vocabulary = load_published_vocabulary(name)
    assert vocabulary.plain is not None
    assert (vocabulary.classes[index][0], vocabulary.plain[index]) == (first, (plain,))


def test_lvis_begins_with_the_first_class_of_its_list() -> None:
    assert load_published_vocabulary("lvis-1203").classes[0] == ("aerosol can", "spray can")


def test_names_that_classes_share_are_told_apart() -> None:
    vocabulary = load_published_vocabulary("ade20k-847")
    shown = {vocabulary.classes[i][0]: [] for i in range(len(vocabulary))}
    for synonyms, name in zip(vocabulary.classes, vocabulary.names, strict=True):
        shown[synonyms[0]].append(name)
    assert shown["pot"] == ["pot (flowerpot)", "pot"]
    assert shown["bag"] == ["bag (gift bag)", "bag (traveling bag)", "bag (handbag)"]
    assert sum(len(names) - 1 for names in shown.values()) == 10  # nine names, one of them three times
    assert all(name == first for first, names in shown.items() if len(names) == 1 for name in names)


def test_pascal_with_and_without_background() -> None:
    whole, foreground = load_published_vocabulary("pascal-21"), load_published_vocabulary("pascal-20")
    assert foreground.classes == whole.classes[1:]
    assert len(whole.classes[0]) == 72  # 74 with repeats
    assert 0 not in whole.things and len(whole.things) == len(foreground.things) == 20
    assert whole.palette()[:2].tolist() == [[0, 0, 0], [128, 0, 0]]


def test_things_of_the_panoptic_sets() -> None:
    counts = {"coco-panoptic": 80, "coco-stuff": 80, "ade20k-150": 100, "cityscapes": 8, "vipseg": 58}
    assert {name: len(load_published_vocabulary(name).things) for name in counts} == counts
    assert sorted(load_published_vocabulary("coco-stuff").things) == list(range(80))
    assert [load_published_vocabulary("cityscapes").names[i] for i in range(11, 19)] == [
        *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    ]


def test_splits() -> None:
    novel = {
        "coco-stuff-156-15": "cow giraffe suitcase frisbee skateboard carrot scissors cardboard clouds grass "
        "playingfield river road tree wall-concrete",
        "pascal-20-15-5": "pottedplant sheep sofa train tvmonitor",
        "vipseg": "pillar ice grandstand tyre box basket trash_can bathtub fan blackboard printer instrument",
        "coco-panoptic-115-18": "bicycle stop_sign cow giraffe suitcase frisbee skateboard wine_glass apple carrot "
        "toilet keyboard scissors bridge cardboard playingfield river wall-stone",
    }
    for name, expected in novel.items():
        vocabulary = load_published_vocabulary(name)
        assert vocabulary.plain is not None
        names = [vocabulary.plain[index][0].replace(" ", "_") for index in sorted(vocabulary.novel)]
        assert names == expected.split(), name
    assert {name for name in NAMES if load_published_vocabulary(name).novel} == {*SPLITS, "vipseg"}
    assert load_published_vocabulary("vspw").classes == load_published_vocabulary("vipseg").classes


def test_the_largest_vocabulary_loads_fast() -> None:
    read_vocabulary(FOLDER / "cityscapes.toml")
    times = []
    for _ in range(5):
        start = time.process_time()  # what other processes take is not ours
        read_vocabulary(FOLDER / "ade20k-847.toml")
        times.append(time.process_time() - start)
    assert min(times) < 0.05


def test_every_file_says_where_it_is_from() -> None:
    for path in FOLDER.glob("*.toml"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# classes: ") and ("OpenSeg" in text or "synonyms by ovstrans" in text), path.name


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(InputError, match=r"vocabulary 'ade20k-874': unknown; did you mean 'ade20k-847'\? known are "):
        load_published_vocabulary("ade20k-874")


def test_a_name_or_a_file(tmp_path: Path) -> None:
    assert load_vocabulary("vspw") is load_published_vocabulary("vspw")
    mine = tmp_path / "mine.toml"
    mine.write_text((FOLDER / "ade20k-847.toml").read_text(encoding="utf-8"), encoding="utf-8")
    assert load_vocabulary(mine) == load_vocabulary(str(mine)) == load_published_vocabulary("ade20k-847")
    with pytest.raises(InputError, match="did you mean 'coco-stuff'"):
        load_vocabulary("coco-stuf")
    with pytest.raises(InputError, match="no such file"):
        load_vocabulary(tmp_path / "none.txt")
