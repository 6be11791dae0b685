"""Costs of inference, against figures that were measured apart from this code and against plain arithmetic.

Provenance of the heads: torch's dispatch counter over the released heads of Mask2Former, GKC and FC-CLIP with
random weights at 800x1216, measured apart from this project (GMAC). Those of FC-CLIP were measured with
14 x 133 + 1 rows of text; it averages its 14 templates first, so its classifier has 254 synonyms and the void.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch

from ovstrans.clip.load import random_clip
from ovstrans.costs.flops import Flops, Macs, count_flops, count_inference, count_prompt_macs, count_text_encoder
from ovstrans.costs.target import Target, load_target
from ovstrans.frameworks.base import Framework
from ovstrans.frameworks.mask_framework import MaskFramework
from ovstrans.frameworks.registry import build_on_meta
from ovstrans.vocabulary.catalog import load_published_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.costs.reference import executed_macs
from tests.costs.test_thop_rules import mask2former  # noqa: F401  a fixture

SIZE = (800, 1216)
HEAD = ("pixel_decoder", "transformer_decoder", "classifier")


def count(target: Target, size: tuple[int, int] = SIZE, **options: Any) -> Flops:
    return count_inference(target.module, size, model=target.model, components=target.components, **options)


def head(components: Mapping[str, Macs]) -> float:
    """GMAC of a Mask2Former head: decoders and the classification of queries."""
    return sum(part.dense for name, part in components.items() if name in HEAD) / 1e9


@pytest.fixture(scope="module")
def fcclip() -> Flops:
    return count(load_target("fcclip-rn50-coco"))


def test_gkc() -> None:
    found = count(load_target("gkc-rn50-coco"))
    parts = found.components
    assert parts["pixel_decoder"].dense / 1e9 == pytest.approx(134.589, abs=5e-4)
    assert head(parts) == pytest.approx(162.609, rel=1e-3)
    assert count_flops(build_on_meta("gkc", "RN50"), (512, 512)).dense / 1e9 == pytest.approx(
        28.0410 + 44.949, rel=1e-3
    )
    assert found.released is None
    # At inference alone, as torch runs it: 100 masks of 133 classes onto every pixel.
    assert parts["inference"].dense == 100 * 133 * 800 * 1216


def test_mask2former(mask2former: MaskFramework) -> None:  # noqa: F811
    """Its class head has a place of its own here: classes at ten predictions, by a linear layer of 134."""
    target = Target("mask2former", "framework", mask2former, mask2former.components(), "RN50")
    released = count(target).released
    assert released is not None
    parts = released.components
    assert parts["other"].dense == 10 * 100 * 256 * 134
    assert head(parts) + parts["other"].dense / 1e9 == pytest.approx(162.637, abs=5e-4)


def test_fcclip_as_released(fcclip: Flops) -> None:
    assert fcclip.text_encoder is not None and fcclip.text_encoder.rows == 254 and fcclip.released is not None
    measured, rows, queries = 237.858, 14 * 133 + 1, 250
    # Ten predictions of 250 queries are compared with every row, in 1024 dimensions.
    expected = measured - 10 * queries * 1024 * (rows - 255) / 1e9
    assert expected == pytest.approx(233.7, abs=0.05)
    released = fcclip.released.components
    assert head(released) == pytest.approx(expected, rel=1e-4)
    # Trunk, head, the attention pool of every mask, and its comparison with the synonyms.
    complete = fcclip.released.dense - released["inference"].dense
    assert complete / 1e9 == pytest.approx(104.0585 + expected + 10.515 + queries * 1024 * 254 / 1e9, abs=2e-3)
    assert complete / 1e9 == pytest.approx(348.4, abs=0.05)


def test_fcclip_as_it_runs_here(fcclip: Flops) -> None:
    assert fcclip.released is not None
    parts, released = fcclip.components, fcclip.released.components
    assert 10 * parts["classifier"].dense == released["classifier"].dense
    assert {name for name in parts if parts[name] != released[name]} == {"classifier", "clip_head"}
    positions, width, dim, queries = 25 * 38, 2048, 1024, 250
    pool = 2 * positions * width**2 + width**2 + positions * width  # keys, values, one query, its scores
    pool += queries * (positions * width + width * dim + dim * 254)  # per mask: values, output, synonyms
    assert parts["clip_head"].dense == pool
    assert parts["inference"].dense == queries * 133 * 800 * 1216


def test_resampling_of_a_mask_framework(fcclip: Flops) -> None:
    positions = 25 * 38 + 50 * 76 + 100 * 152
    samples = 6 * positions * 256 * 3 * 4  # layers, channels, levels, points
    quarter = 200 * 304
    masks = 250 * (4 * (25 * 38) + 3 * (50 * 76) + 3 * (100 * 152))  # of ten predictions, to the next level's size
    assert fcclip.resampling is not None
    operations = fcclip.resampling.operations
    assert operations["deformable_sampling"] == 4 * samples
    assert operations["deformable_weighting"] == samples
    # Feature pyramid, attention masks, masks at pixels, masks and position embeddings (7x7) at stride 32, twice.
    resized = 256 * quarter + masks + 250 * 800 * 1216 + 2 * 250 * 25 * 38 + 2048 * 25 * 38
    assert operations["bilinear_resizing"] == 4 * resized
    assert sum(operations.values()) == fcclip.resampling.total == sum(fcclip.resampling.components.values())
    assert fcclip.to_json()["flops"]["other"] == 2 * fcclip.resampling.total


def test_resampling_is_in_no_sum(fcclip: Flops) -> None:
    entry = fcclip.to_json()
    assert entry["unit"] == "MAC" and entry["flops"]["unit"] == "FLOP"
    assert entry["dense"] == fcclip.dense == sum(part.dense for part in fcclip.components.values())
    assert entry["flops"]["dense"] == 2 * fcclip.dense
    assert entry["flops"]["effective"] == 2 * fcclip.effective
    assert "other" not in fcclip.components


def test_what_is_written_is_read(fcclip: Flops) -> None:
    assert Flops.from_json(json.loads(json.dumps(fcclip.to_json()))) == fcclip
    plain = fcclip.without_layers()
    assert "layers" not in plain.to_json() and Flops.from_json(plain.to_json()) == plain


def test_deeplabv3_resizes_scores_to_pixels() -> None:
    found = count(load_target("deeplabv3-rn50-coco"))
    assert found.resampling_layers is not None
    resized = {each.name: each.macs for each in found.resampling_layers if each.component == "inference"}
    assert resized == {"DeepLabV3": 4 * 133 * 800 * 1216}
    assert found.components["classifier"].dense == 50 * 76 * 1024 * 134


def test_the_text_encoder_by_arithmetic() -> None:
    """CLIP RN50's: 12 layers of width 512 over 77 tokens, and a projection of one of them."""
    tokens, width, layers = 77, 512, 12
    layer = tokens * width * width * 12 + 2 * tokens * tokens * width
    assert count_prompt_macs("RN50") == layers * layer + width * 1024
    found = count_text_encoder(cast(Framework, load_target("fcclip", model="RN50").module), "RN50")
    assert (found.rows, found.templates, found.prompts) == (254, 14, 3556)
    assert found.macs == 3556 * count_prompt_macs("RN50")
    assert found.to_json()["flops"] == 2 * found.macs


def test_every_name_in_every_template_is_a_prompt() -> None:
    vocabulary = Vocabulary.from_names("v", ["a, b", "c"], templates=("{}", "no {}", "{}!"))
    framework = build_on_meta("deeplabv3", "RN-mini", vocabulary=vocabulary)
    found = count_text_encoder(framework, "RN-mini")
    assert (found.vocabulary, found.rows, found.prompts) == ("v", 3, 9)


def test_a_prompt_costs_what_encoding_one_does() -> None:
    clip = random_clip("RN-mini")
    with torch.no_grad():
        assert executed_macs(lambda: clip.model.encode_text(clip.tokenizer(["a lamp"]))) == count_prompt_macs("RN-mini")


def test_a_backbone_has_no_text() -> None:
    found = count(load_target("RN50"), (64, 64)).to_json()
    assert found["text_encoder"] is None and found["released"] is None
    assert found["other"] == {"total": 0, "operations": {}, "components": {}}


def test_other_counters_mix() -> None:
    found = count(load_target("gkc", model="RN50"), counter="thop-rules").to_json()
    assert found["counter"] == "thop-rules" and found["other"] is None and found["text_encoder"] is None
    assert found["flops"]["other"] is None and found["other_layers"] == []
    assert round(found["dense"] / 1e9, 3) == 197.196  # 105.0415 of the backbone, 92.154 of the head


def test_rows_are_those_a_framework_prompts() -> None:
    coco = load_published_vocabulary("coco-panoptic")
    rows = {
        name: len(cast(Framework, load_target(name, vocabulary=coco).module).text.owner)
        for name in ("fcclip", "gkc", "deeplabv3")
    }
    assert rows == {"fcclip": 254, "gkc": 133, "deeplabv3": 133}
    assert cast(Framework, load_target("fcclip-mini").module).text.vocabulary.name == "scenes"
    assert cast(Framework, load_target("fcclip").module).text.vocabulary.name == "coco-panoptic"
