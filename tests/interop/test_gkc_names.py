from __future__ import annotations

from typing import Any

import pytest
import torch

from ovstrans.errors import MismatchError
from ovstrans.interop.published_names import from_gkc, to_gkc
from tests.frameworks import gkc_case as case


def state(**options: Any) -> dict[str, torch.Tensor]:
    """That of the small case, without its trunk but for a layer."""
    found = case.model(**options).state_dict()
    kept = ("backbone.conv1", "backbone.layer2.0.downsample")
    return {key: value for key, value in found.items() if not key.startswith("backbone.") or key.startswith(kept)}


@pytest.mark.parametrize(
    "options",
    [{}, {"distill": "plain"}, {"distill": "none"}, {"distill_from": "embedding"}, {"decoder_layers": 11}],
)
def test_there_and_back_to_the_last_bit(options: dict[str, Any]) -> None:
    ours = state(**options)
    again = from_gkc(to_gkc(ours))
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], value) and again[key].dtype == value.dtype for key, value in ours.items())


def test_their_names() -> None:
    """Those of GKC's state dict (yongliu20/GKC, maskformer_model_voca_dense_kd_syn.py), typing errors and all."""
    theirs = to_gkc(state())
    assert {key for key in theirs if not key.startswith(("backbone.", "sem_seg_head."))} == {
        *(f"embed_proj.1.{kind}" for kind in ("weight", "bias")),
        *(f"aux_embed_porj_{number}.1.{kind}" for number in range(3) for kind in ("weight", "bias")),
        *(f"kd_proj.{kind}" for kind in ("weight", "bias")),
        *(f"aux_kd_porj_{number}.{kind}" for number in range(3) for kind in ("weight", "bias")),
        "non_object_embedding",
        "logit_scale",
        "text_kd_logit_scale",
    }
    assert theirs["non_object_embedding"].shape == (1, 128)
    assert theirs["sem_seg_head.predictor.class_embed.weight"].shape == (32, 32)
    assert theirs["sem_seg_head.predictor.transformer_self_attention_layers.2.self_attn.in_proj_weight"].shape == (
        96,
        32,
    )
    assert "backbone.layer2.0.downsample.0.weight" in theirs


def test_what_is_theirs_alone_is_left_out() -> None:
    ours = state()
    extra = {
        "vision_clip.conv1.weight": torch.zeros(1),
        "criterion.empty_weight": torch.zeros(6),
        "empty_weight": torch.zeros(1),
        "text_encoder.ln_final.weight": torch.zeros(4),
    }
    assert from_gkc({**to_gkc(ours), **extra}).keys() == ours.keys()


def test_a_text_encoder_comes_back_where_it_is_whole() -> None:
    encoder = {"text_tower.ln_final.weight": torch.rand(4), "text_tower.logit_scale": torch.rand(())}
    theirs = to_gkc(encoder)
    assert set(theirs) == {"text_encoder.ln_final.weight", "text_encoder.logit_scale"}
    again = from_gkc(theirs)
    assert again.keys() == encoder.keys() and all(torch.equal(again[key], encoder[key]) for key in encoder)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("clip_path.attnpool.c_proj.weight", "clip_path=none"),
        ("class_head.embed.0.weight", "not a tensor of our gkc"),
    ],
)
def test_what_has_no_name_there(key: str, words: str) -> None:
    with pytest.raises(MismatchError, match=words):
        to_gkc({key: torch.zeros(1)})


def test_what_has_no_name_here() -> None:
    with pytest.raises(MismatchError, match="void_embedding.weight: not a tensor of GKC"):
        from_gkc({"void_embedding.weight": torch.zeros(1, 4)})
