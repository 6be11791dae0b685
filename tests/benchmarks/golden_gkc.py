"""The released code of GKC and of OpenTrans against ours, on the same weights, and the golden file.

    python -m tests.benchmarks.golden_gkc --upstream FOLDER --commit HASH --opentrans FOLDER
        --opentrans-commit HASH [--write] [--published]

FOLDERs hold the released repositories (their `mask2former/` packages), outside this one. GKC's model is run
as it is for text diversification, OpenTrans' for the rest: forward passes in train mode, on the CPU, with
the backbone's features, the matching and the embeddings of texts and regions given. What they import of
detectron2 is replaced by a few lines. --write renews `tests/frameworks/golden/gkc.safetensors`. --published
compares at the published size instead (RN50, 100 queries, the full head) and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ovstrans import files
from ovstrans.clip.backbone import stage_channels
from ovstrans.frameworks.gkc import GKC
from ovstrans.interop.published_names import to_gkc
from tests.benchmarks.golden_fcclip import Conv2d, Registry, module
from tests.frameworks import gkc_case as case
from tests.frameworks import golden_case

ShapeSpec = namedtuple("ShapeSpec", ["channels", "stride"])
SKIPPED = ("", ".modeling", ".modeling.transformer_decoder", ".modeling.pixel_decoder")
"""Upstream packages whose `__init__` would import datasets and evaluators."""
MOST_NOUNS = 5


def stand_in(upstream: Path) -> None:
    """Make the `mask2former` of a folder importable without detectron2, its CUDA kernel and its datasets."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mask2former"]:
        del sys.modules[name]
    registry, nothing = Registry(), None
    torch.nn.modules.faster_transformer = None  # type: ignore[attr-defined]
    module("MultiScaleDeformableAttention")
    module("detectron2")
    module("detectron2.config", configurable=lambda function: function)
    module("detectron2.data", MetadataCatalog=nothing)
    layers = {"Conv2d": Conv2d, "DeformConv": nothing, "ShapeSpec": ShapeSpec}
    layers["get_norm"] = lambda _, width: nn.GroupNorm(32, width)
    module("detectron2.layers", **layers)
    names = ("META_ARCH_REGISTRY", "SEM_SEG_HEADS_REGISTRY")
    builders = {"build_backbone": nothing, "build_sem_seg_head": nothing}
    module("detectron2.modeling", **dict.fromkeys(names, registry), **builders)
    module("detectron2.modeling.backbone", Backbone=nn.Module)
    module("detectron2.modeling.postprocessing", sem_seg_postprocess=nothing)
    module("detectron2.projects")
    module("detectron2.projects.point_rend")
    point = {"point_sample": nothing, "get_uncertain_point_coords_with_randomness": nothing}
    module("detectron2.projects.point_rend.point_features", **point)
    structures = {"ImageList": Images, "Boxes": nothing, "Instances": nothing, "BitMasks": nothing}
    module("detectron2.structures", **structures)
    module("detectron2.utils")
    module("detectron2.utils.comm", get_world_size=lambda: 1)
    module("detectron2.utils.memory", retry_if_cuda_oom=lambda function: function)
    module("detectron2.utils.registry", Registry=Registry)
    for name in SKIPPED:
        module(f"mask2former{name}")
        sys.modules[f"mask2former{name}"].__path__ = [str(upstream / "mask2former" / name.replace(".", "/").strip("/"))]
    module("mask2former.clip_models", CLIPTextEncoder=nothing)
    module("mask2former.kd_clip", CLIPResNetWithAttention=nothing)


class Images:
    """Images of one size."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @classmethod
    def from_tensors(cls, images: list[Tensor], divisor: int) -> Images:
        return cls(torch.stack(images))


class Backbone(nn.Module):
    """Ours, given: its features, not its weights, are upstream's input."""

    def __init__(self, ours: GKC) -> None:
        super().__init__()
        self.features: dict[str, Tensor] = {}
        found = stage_channels(ours.backbone)
        strides = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
        self.shapes = {name: ShapeSpec(found[name], stride) for name, stride in strides.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {**self.shapes, "attn": ShapeSpec(self.dim, 32)}

    dim = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.features


class Texts(nn.Module):
    """A text encoder that is given embeddings for tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.text_projection = nn.Parameter(torch.zeros(1, dim))
        self.transformer = SimpleNamespace(width=512)

    def init_weights(self) -> None: ...

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens


class Teacher(Texts):
    """An image encoder that is given embeddings for regions."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"attn_g": images}


class Matched(nn.Module):
    """A criterion that is given the matching, and keeps what it sees."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        from mask2former.modeling.criterion import SetCriterion  # type: ignore[import-not-found]

        self.num_classes, self.weight_dict = len(case.NAMES), weights
        self._get_src_permutation_idx = SetCriterion._get_src_permutation_idx.__get__(self)

    def forward(self, outputs: dict[str, Any], targets: Any, get_all_indice: bool) -> tuple[dict, Any, Any]:
        self.outputs = outputs
        return {}, self.pairs[-1], self.pairs[:-1]


def theirs(ours: GKC, *, synonyms: bool) -> Any:
    """Upstream's model with our weights: OpenTrans', or with `synonyms` GKC's."""
    from mask2former.modeling.meta_arch.mask_former_head import MaskFormerHead  # type: ignore[import-not-found]
    from mask2former.modeling.pixel_decoder.msdeformattn import (  # type: ignore[import-not-found]
        MSDeformAttnPixelDecoder,
    )
    from mask2former.modeling.transformer_decoder.mask2former_transformer_decoder_voca import (  # type: ignore[import-not-found]
        MultiScaleMaskedTransformerDecoderVoca,
    )
    from mask2former.modeling.utils.loss import GroundingHead  # type: ignore[import-not-found]

    if synonyms:
        from mask2former import maskformer_model_voca_dense_kd_syn as meta  # type: ignore[import-not-found]

        kind: Any = meta.OpenSegMaskFormerDenseTextKDSyn
        own: dict[str, Any] = {}
    else:
        from mask2former import maskformer_model_voca_dense_kd as meta  # type: ignore[import-not-found]

        kind = meta.OpenSegMaskFormerDenseTextKD
        own = {"kd_type": "vanilla" if ours.options["distill"] == "plain" else "vision"}
    options, dim = ours.options, ours.embed_dim
    width, heads = options["width"], options["heads"]
    backbone = Backbone(ours)
    backbone.dim = dim
    decoder = MSDeformAttnPixelDecoder(
        backbone.shapes,
        transformer_dropout=0.0,
        transformer_nheads=heads,
        transformer_dim_feedforward=options["encoder_ffn"],
        transformer_enc_layers=options["encoder_layers"],
        conv_dim=width,
        mask_dim=width,
        norm="GN",
        transformer_in_features=["res3", "res4", "res5"],
        common_stride=4,
    )
    predictor = MultiScaleMaskedTransformerDecoderVoca(
        width,
        False,
        num_classes=len(case.NAMES),
        hidden_dim=width,
        num_queries=options["queries"],
        nheads=heads,
        dim_feedforward=options["decoder_ffn"],
        dec_layers=options["decoder_layers"],
        pre_norm=False,
        mask_dim=width,
        enforce_input_project=False,
        vision_feature="queryClass",
        text_embed_dim=dim,
        dense_supervise=True,
    )
    head = MaskFormerHead(
        backbone.shapes,
        num_classes=len(case.NAMES),
        pixel_decoder=decoder,
        transformer_predictor=predictor,
        transformer_in_feature="multi_scale_pixel_decoder",
    )
    grounding = SimpleNamespace(
        LOCAL_METRIC="clip_cosine",
        GLOBAL_METRIC="aligned_local",
        ALIGNMENT="softmax",
        ALIGNMENT_TEMPERATURE=10.0,
        LOSS="cross_entropy",
        NEGATIVE_MINING="random",
        TRIPLET_MARGIN=1.0,
        ALIGN_WORDS_TO_REGIONS=True,
        ALIGN_REGIONS_TO_WORDS=True,
    )
    config = SimpleNamespace(MODEL=SimpleNamespace(GROUNDING=grounding, TEXT_ENCODER=SimpleNamespace(EMBED_DIM=dim)))
    model = kind(
        backbone=backbone,
        vision_clip=Teacher(dim),
        sem_seg_head=head,
        criterion=Matched(loss_weights(ours)),
        num_queries=options["queries"],
        object_mask_threshold=0.8,
        overlap_threshold=0.8,
        metadata=None,
        size_divisibility=32,
        sem_seg_postprocess_before_inference=False,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        text_encoder=Texts(dim),
        grounding_head=GroundingHead(config),
        grounding_super=True,
        region_supervision=True,
        learned_temp=True,
        region_dropout=0.0,
        plain_class_super=True,
        syn_class_type="thresRand",
        vision_feature="queryClass",
        embed_dim=dim,
        no_object_weight=options["void_weight"],
        freeze_backbone=False,
        embed_proj=True,
        kd_stu_source="prior",
        kd_tec_source="attn_g",
        max_kd_len=options["distill_regions"],
        fast_kd=True,
        additional_text_kd=options["distill_pair_weight"] > 0,
        grounding_gather=False,
        dec_layers=ours.predictions,
        syn_super=True,
        kd_super=True,
        semantic_on=True,
        panoptic_on=False,
        instance_on=False,
        test_topk_per_image=100,
        **own,
    )
    named = OrderedDict(
        (key, value) for key, value in to_gkc(ours.state_dict()).items() if not key.startswith("backbone.")
    )
    # Without the version of the format upstream takes them for names of old, and renames them.
    named._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    missing, unexpected = model.load_state_dict(named, strict=False)
    assert not unexpected, unexpected
    left = {"empty_weight", "text_encoder.text_projection", "vision_clip.text_projection"}
    assert set(missing) <= {*left, "text_kd_logit_scale"}, missing
    return model.train()


OUR_NAMES = {
    "loss_ce": "loss.class",
    "loss_kd": "loss.distill",
    "loss_text_kd": "loss.distill_pairs",
    "loss_grounding": "loss.grounding",
    "loss_syn": "loss.synonyms",
}


def loss_weights(ours: GKC) -> dict[str, float]:
    """The weight of each of upstream's losses, at every prediction."""
    options = ours.options
    weights = {
        "loss_ce": options["class_weight"],
        "loss_kd": options["distill_weight"],
        "loss_text_kd": options["distill_pair_weight"],
        "loss_grounding": options["grounding_weight"],
        "loss_syn": options["synonyms_weight"],
    }
    suffixes = ["", *(f"_{number}" for number in range(ours.predictions - 1))]
    return {name + suffix: value for name, value in weights.items() for suffix in suffixes}


def inputs(ours: GKC, size: tuple[int, int]) -> list[dict[str, Any]]:
    """What upstream's dataset mapper would give, embeddings in place of tokens and regions."""
    given = case.batch(ours.embed_dim, size, synonyms=True)
    assert given.teacher is not None and given.nouns is not None and given.synonyms is not None
    plain = golden_case.text_of(case.NAMES, ours.embed_dim).embeddings
    captions = case.padded(given.nouns, MOST_NOUNS)
    result = []
    for row, kinds in enumerate(case.SEGMENTS):
        names, numbers = chosen(list(case.NAMES.classes), row)
        result.append(
            {
                "image": given.images[row],
                "image_id": row,
                "caption": captions[row],
                "caption_mask": (torch.arange(MOST_NOUNS) < len(given.nouns[row])).long(),
                "all_caption": plain,
                "syn_class": case.rows("text of", names, ours.embed_dim),
                "syn_classes": torch.tensor(numbers),
                "kd_image": given.teacher[row],
                "instances": Instances(torch.tensor(kinds), torch.zeros(len(kinds), *size, dtype=torch.bool)),
            }
        )
    return result


class Instances:
    """The segments of an image."""

    def __init__(self, classes: Tensor, masks: Tensor) -> None:
        self.gt_classes, self.gt_masks = classes, masks

    def to(self, device: Any) -> Instances:
        return self


def chosen(classes: list[tuple[str, ...]], row: int) -> tuple[tuple[str, ...], list[int]]:
    """The names that an image is to tell apart, and of each segment its number, by upstream's rule."""
    names, changed, numbers = [each[0] for each in classes], set(), []
    for kind, name in zip(case.SEGMENTS[row], case.SYNONYMS[row], strict=True):
        number = kind
        if names[kind] == name:
            changed.add(kind)
        elif kind not in changed:
            names[kind] = name
            changed.add(kind)
        elif name in names[len(classes) :]:
            number = names.index(name, len(classes))
        else:
            number = len(names)
            names.append(name)
        numbers.append(number)
    return tuple(names), numbers


def answers(model: Any, ours: GKC, size: tuple[int, int]) -> dict[str, Tensor]:
    """Upstream's answers, by the names of `gkc_case.answers`."""
    given = inputs(ours, size)
    model.criterion.pairs = case.matches(ours.predictions, ours.options["queries"])
    with torch.no_grad():
        model.backbone.features = ours.backbone_features(case.images(size))
        losses = model(given)
    outputs = model.criterion.outputs
    predictions = [*outputs["aux_outputs"], outputs]
    result = {
        "mask_logits": torch.stack([each["pred_masks"] for each in predictions]),
        "class_logits": torch.stack([each["pred_logits"] for each in predictions]),
    }
    for theirs_, own in OUR_NAMES.items():
        values = [value for name, value in losses.items() if name.rstrip("0123456789").rstrip("_") == theirs_]
        if values:
            result[own] = torch.stack(values).sum()
    return result


def main() -> None:
    """Compare, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, whose in (("", "GKC"), ("opentrans", "OpenTrans")):
        parser.add_argument(f"--{name or 'upstream'}", type=Path, required=True, help=f"folder of {whose}")
        parser.add_argument(f"--{name + '-' if name else ''}commit", required=True, help="its commit, for the record")
    parser.add_argument("--write", action="store_true", help="renew the golden file")
    parser.add_argument("--published", action="store_true", help="RN50 and the full head")
    given = parser.parse_args()
    clip = "RN50" if given.published else "RN-mini"
    options = {"region_drop": 0.0} if given.published else case.SMALL
    sizes = ((128, 160), (192, 128)) if given.published else case.SIZES
    golden: dict[str, Tensor] = {}
    for variant, changes in case.VARIANTS.items():
        stand_in(given.upstream if variant == "synonyms" else given.opentrans)
        ours = case.model(clip, options, **changes)
        model = theirs(ours, synonyms=variant == "synonyms")
        for size in sizes:
            expected, found = answers(model, ours, size), case.answers(ours, size)
            assert expected.keys() == found.keys(), expected.keys() ^ found.keys()
            print(f"{variant}, {size[0]}x{size[1]}")
            for key, value in expected.items():
                if value.dim():
                    gaps = [golden_case.difference(a, b) for a, b in zip(found[key], value, strict=True)]
                    print(f"  {key:20} {' '.join(f'{gap:.1e}' for gap in gaps)}")
                else:
                    print(f"  {key:20} {golden_case.difference(found[key], value):.1e}  ({float(value):.4f})")
                if variant == "text-guided" or key.startswith("loss"):
                    golden[f"{variant}.{size[0]}x{size[1]}.{key}"] = value.contiguous()
    if given.write and not given.published:
        command = (
            f"python -m tests.benchmarks.golden_gkc --upstream FOLDER --commit {given.commit} "
            f"--opentrans FOLDER --opentrans-commit {given.opentrans_commit} --write"
        )
        about = {
            "what": "answers of the released code to the case in tests/frameworks/gkc_case.py",
            "upstream": f"github.com/Xujxyang/OpenTrans @ {given.opentrans_commit}; "
            f"github.com/yongliu20/GKC @ {given.commit} for synonyms",
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "seed": str(golden_case.SEED),
            "command": command,
        }
        files.write_tensors(case.GOLDEN, golden, about)
        print(f"wrote {case.GOLDEN} ({case.GOLDEN.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
