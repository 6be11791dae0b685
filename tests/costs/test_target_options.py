from __future__ import annotations

from pathlib import Path

import pytest

from ovstrans.costs.target import load_target, parse_size
from ovstrans.datasets.catalog import find_vocabulary
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Framework


def test_settings_of_a_recipe_and_of_a_framework() -> None:
    for name in ("deeplabv3-mini", "deeplabv3"):
        module = load_target(name, settings=("model.width=24",)).module
        assert isinstance(module, Framework) and module.options["width"] == 24
    assert load_target("deeplabv3", settings=("model.clip=RN50",)).model == "RN50"


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("deeplabv3", "model.wdth=24", "did you mean 'model.width'"),
        ("deeplabv3", "model.width=wide", "a whole number is needed"),
        ("deeplabv3-mini", "width=24", "no such key"),
        ("RN50", "model.width=24", "RN50 has no settings"),
    ],
)
def test_settings_that_do_not_fit(name: str, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_target(name, settings=(setting,))


def test_a_vocabulary_is_a_datasets_or_a_files(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat, kitten\ndog\n")
    assert len(find_vocabulary(str(tmp_path / "names.txt"))) == 2
    assert len(find_vocabulary("pas-20")) == 20 == len(find_vocabulary("pascal-20"))
    assert len(find_vocabulary("coco-panoptic:val")) == 133
    assert len(find_vocabulary("scenes")) > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("coco-panoptik", "'coco-panoptik': no such dataset or vocabulary; did you mean 'coco-panoptic'[?] known are "),
        ("lvis-1230", "did you mean 'lvis-1203'[?]"),  # a vocabulary without a dataset
        (
            "nosuch",
            "no such dataset or vocabulary; known are scenes, .*ade20k-847, .*lvis-1203, .*in .txt, .toml, .*tsv$",
        ),
        (".", "did you mean 'folder:.'[?]"),
        ("nosuch.txt", "nosuch.txt: no such file"),
        ("folder:nosuch", "nosuch: no such file or folder"),
        ("scenes:nosuch", "nosuch"),
    ],
)
def test_vocabularies_that_there_are_not(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_vocabulary(spec)


def test_the_vocabulary_decides_how_many_rows_are_compared() -> None:
    modules = [load_target("deeplabv3", vocabulary=name).module for name in ("pas-20", "ade20k-150")]
    classes = [len(module.text.vocabulary) for module in modules if isinstance(module, Framework)]
    assert classes == [20, 150]


@pytest.mark.parametrize(("text", "size"), [("800x1216", (800, 1216)), ("512", (512, 512)), (None, None)])
def test_image_sizes(text: str | None, size: tuple[int, int] | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "64x", "x64", "64x0", "-1", "64x64x3", "big"])
def test_no_image_sizes(text: str) -> None:
    with pytest.raises(InputError, match="HEIGHTxWIDTH"):
        parse_size(text)
