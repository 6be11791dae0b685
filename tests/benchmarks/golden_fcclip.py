"""FC-CLIP's released code against ours, on the same weights: how far apart they are, and the golden file.

    python -m tests.benchmarks.golden_fcclip --upstream FOLDER --commit HASH [--write] [--published]

FOLDER holds the released repository (its `fcclip/` package), outside this one. Its modules run as they
are, on the CPU; what they import of detectron2 is replaced by the few lines below. --write renews
`tests/frameworks/golden/fcclip.safetensors`. --published compares at the published size instead (RN50, 250
queries, the full head), which takes a minute and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans import files
from ovstrans.clip.backbone import stage_channels
from ovstrans.clip.load import create_image_encoder
from ovstrans.frameworks.fcclip import FCCLIP
from ovstrans.interop.published_names import to_fcclip
from ovstrans.vocabulary.vocabulary import Vocabulary
from tests.frameworks import golden_case as case

SKIPPED = ("fcclip", "modeling", "backbone", "transformer_decoder", "pixel_decoder", "meta_arch")
"""Upstream packages whose `__init__` would import datasets and evaluators."""


class Conv2d(nn.Conv2d):
    """A convolution, then its norm and activation."""

    def __init__(self, *sizes: Any, norm: nn.Module | None = None, activation: Any = None, **keywords: Any) -> None:
        super().__init__(*sizes, **keywords)
        self.norm, self.activation = norm, activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


class Registry:
    """Registers nothing."""

    def __init__(self, *_: Any) -> None: ...

    def register(self) -> Any:
        return lambda kind: kind


class ImageList:
    """Images, zero-padded right and below."""

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor, self.image_sizes = tensor, image_sizes

    @classmethod
    def from_tensors(cls, images: list[Tensor], divisor: int) -> ImageList:
        (image,) = images
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % divisor, 0, -height % divisor))
        return cls(padded[None], [(height, width)])


def postprocess(result: Tensor, size: tuple[int, int], height: int, width: int) -> Tensor:
    """Without the padding, at another size."""
    result = result[:, : size[0], : size[1]][None]
    return F.interpolate(result, size=(height, width), mode="bilinear", align_corners=False)[0]


def module(name: str, **entries: Any) -> None:
    """A module of that name with those entries, for imports to find."""
    found = ModuleType(name)
    found.__dict__.update(entries)
    sys.modules[name] = found


def stand_in(upstream: Path) -> None:
    """Make upstream's modules importable without detectron2, its CUDA kernel and its datasets."""
    registry, nothing = Registry(), None
    module("MultiScaleDeformableAttention")
    module("detectron2")
    module("detectron2.config", configurable=lambda function: function)
    module("detectron2.data", MetadataCatalog=nothing)
    module("detectron2.layers", Conv2d=Conv2d, ShapeSpec=nothing, get_norm=lambda _, width: nn.GroupNorm(32, width))
    module(
        "detectron2.modeling",
        BACKBONE_REGISTRY=registry,
        META_ARCH_REGISTRY=registry,
        SEM_SEG_HEADS_REGISTRY=registry,
        Backbone=nn.Module,
        ShapeSpec=nothing,
        build_backbone=nothing,
        build_sem_seg_head=nothing,
    )
    module("detectron2.modeling.backbone", Backbone=nn.Module)
    module("detectron2.modeling.postprocessing", sem_seg_postprocess=postprocess)
    module("detectron2.projects")
    module("detectron2.projects.point_rend")
    point = {"point_sample": nothing, "get_uncertain_point_coords_with_randomness": nothing}
    module("detectron2.projects.point_rend.point_features", **point)
    module("detectron2.structures", ImageList=ImageList, Boxes=nothing, Instances=nothing, BitMasks=nothing)
    module("detectron2.utils", comm=nothing)
    module("detectron2.utils.comm", get_world_size=lambda: 1)
    module("detectron2.utils.memory", retry_if_cuda_oom=lambda function: function)
    module("detectron2.utils.registry", Registry=Registry)
    module("fcclip")
    sys.modules["fcclip"].__path__ = [str(upstream / "fcclip")]
    for name in SKIPPED[1:]:
        inner = "fcclip.modeling" if name == "modeling" else f"fcclip.modeling.{name}"
        module(inner)
        sys.modules[inner].__path__ = [str(upstream / inner.replace(".", "/"))]


class Clip(nn.Module):
    """The parts of open_clip's CLIP that upstream touches at inference."""

    def __init__(self, encoder: nn.Module, dim: int, scale: float) -> None:
        super().__init__()
        self.visual = encoder
        self.text_projection = nn.Parameter(torch.zeros(1, dim))
        self.logit_scale = nn.Parameter(torch.tensor(scale).log())


def theirs(ours: FCCLIP, clip: str) -> tuple[Any, Any]:
    """(upstream's model with our weights, its module)."""
    from fcclip import fcclip as meta  # type: ignore[import-not-found]
    from fcclip.modeling.backbone.clip import CLIP  # type: ignore[import-not-found]
    from fcclip.modeling.meta_arch.fcclip_head import FCCLIPHead  # type: ignore[import-not-found]
    from fcclip.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder  # type: ignore[import-not-found]
    from fcclip.modeling.transformer_decoder.fcclip_transformer_decoder import (  # type: ignore[import-not-found]
        MultiScaleMaskedTransformerDecoder,
    )

    options = ours.options
    width, heads = options["width"], options["heads"]
    backbone = CLIP.__new__(CLIP)
    nn.Module.__init__(backbone)
    backbone.clip_model = Clip(create_image_encoder(clip), ours.embed_dim, options["clip_scale"])
    backbone.model_name, backbone.model_type = "rn", "resnet"

    found = stage_channels(ours.backbone)
    shapes = {
        name: SimpleNamespace(channels=found[name], stride=stride)
        for name, stride in (("res2", 4), ("res3", 8), ("res4", 16), ("res5", 32))
    }
    decoder = MSDeformAttnPixelDecoder(
        shapes,
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
    predictor = MultiScaleMaskedTransformerDecoder(
        width,
        True,
        num_classes=len(case.TRAINED.base),
        hidden_dim=width,
        num_queries=options["queries"],
        nheads=heads,
        dim_feedforward=options["decoder_ffn"],
        dec_layers=options["decoder_layers"],
        pre_norm=False,
        mask_dim=width,
        enforce_input_project=False,
        clip_embedding_dim=ours.embed_dim,
    )
    head = FCCLIPHead(
        shapes,
        num_classes=len(case.TRAINED.base),
        pixel_decoder=decoder,
        transformer_predictor=predictor,
        transformer_in_feature="multi_scale_pixel_decoder",
    )
    model = meta.FCCLIP(
        backbone=backbone,
        sem_seg_head=head,
        criterion=None,
        num_queries=options["queries"],
        object_mask_threshold=options["object_threshold"],
        overlap_threshold=options["overlap_threshold"],
        train_metadata=metadata(case.TRAINED),
        test_metadata=metadata(case.ASKED),
        size_divisibility=32,
        sem_seg_postprocess_before_inference=False,
        pixel_mean=[255 * float(value) for value in ours.pixel_mean.flatten()],
        pixel_std=[255 * float(value) for value in ours.pixel_std.flatten()],
        semantic_on=True,
        panoptic_on=False,
        instance_on=False,
        test_topk_per_image=100,
        geometric_ensemble_alpha=options["alpha"],
        geometric_ensemble_beta=options["beta"],
        ensemble_on_valid_mask=True,
    )
    missing, unexpected = model.load_state_dict(to_fcclip(ours.state_dict()), strict=False)
    assert not unexpected, unexpected
    assert set(missing) == {f"backbone.clip_model.{name}" for name in ("text_projection", "logit_scale")}, missing
    # Its own text encoder permutes for an open_clip of 2023; the rows are given instead.
    model.test_text_classifier = case.text_of(case.ASKED, ours.embed_dim).embeddings
    return model.eval(), meta


def metadata(vocabulary: Vocabulary) -> SimpleNamespace:
    """What upstream reads class names from: those that are labelled in training."""
    base = vocabulary.subset(sorted(vocabulary.base))
    return SimpleNamespace(stuff_classes=[",".join(names) for names in base.classes])


@contextlib.contextmanager
def recorded(model: Any, meta: Any) -> Iterator[dict[str, Any]]:
    """What passes through upstream's modules while it runs."""
    seen: dict[str, Any] = {}
    features, classify, semantic = (
        model.sem_seg_head.pixel_decoder.forward_features,
        meta.get_classification_logits,
        model.semantic_inference,
    )

    def forward_features(given: Any) -> Any:
        seen["pixels"] = features(given)
        return seen["pixels"]

    def get_classification_logits(*arguments: Any) -> Tensor:
        seen["outer"] = classify(*arguments)
        return seen["outer"]

    def semantic_inference(classes: Tensor, masks: Tensor) -> Tensor:
        seen["final"] = classes
        return semantic(classes, masks)

    model.sem_seg_head.pixel_decoder.forward_features = forward_features
    model.semantic_inference = semantic_inference
    meta.get_classification_logits = get_classification_logits
    handle = model.sem_seg_head.register_forward_hook(lambda _module, _inputs, output: seen.update(head=output))
    try:
        yield seen
    finally:
        handle.remove()
        meta.get_classification_logits = classify


def answers(model: Any, meta: Any, picture: Tensor) -> dict[str, Tensor]:
    """Upstream's answers, by the names of `golden_case.answers`."""
    with torch.no_grad(), recorded(model, meta) as seen:
        (result,) = model([{"image": picture[0].float()}])
    predictions = [*seen["head"]["aux_outputs"], seen["head"]]
    return {
        "mask_features": seen["pixels"][0][:, :: case.SHOWN],
        "mask_logits": torch.cat([each["pred_masks"] for each in predictions]),
        "class_logits": torch.cat([each["pred_logits"] for each in predictions]),
        "clip_logits": seen["outer"][..., :-1],
        "probabilities": seen["final"].softmax(-1)[None],
        "semantic": result["sem_seg"][None],
    }


def main() -> None:
    """Compare, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--upstream", type=Path, required=True, help="folder of the released repository")
    parser.add_argument("--commit", required=True, help="its commit, for the record")
    parser.add_argument("--write", action="store_true", help="renew the golden file")
    parser.add_argument("--published", action="store_true", help="RN50 and the full head")
    given = parser.parse_args()
    stand_in(given.upstream)
    clip = "RN50" if given.published else "RN-mini"
    ours = case.model(clip, {} if given.published else case.SMALL)
    model, meta = theirs(ours, clip)
    golden: dict[str, Tensor] = {}
    for size in ((256, 256), (200, 330)) if given.published else case.SIZES:
        picture = case.image(size)
        expected, found = answers(model, meta, picture), case.answers(ours, picture)
        name = f"{size[0]}x{size[1]}"
        masks = expected["mask_logits"]
        empty = int((case.resized(masks, size) <= 0).flatten(1).all(1).sum())
        print(f"{name}: {empty} of {masks.shape[1]} masks empty at stride 32, margin {case.margin(masks, size):.1e}")
        for key, value in expected.items():
            print(f"  {key:14} {tuple(value.shape)!s:24} {case.difference(found[key], value):.1e}")
            golden[f"{name}.{key}"] = value.contiguous()
        golden[f"{name}.image"] = picture
    if given.write and not given.published:
        golden = {key: value for key, value in golden.items() if not key.endswith("semantic")}
        about = {
            "what": "answers of FC-CLIP's released code to the case in tests/frameworks/golden_case.py",
            "upstream": f"github.com/bytedance/fc-clip @ {given.commit}",
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "seed": str(case.SEED),
            "command": f"python -m tests.benchmarks.golden_fcclip --upstream FOLDER --commit {given.commit} --write",
        }
        files.write_tensors(case.GOLDEN, golden, about)
        print(f"wrote {case.GOLDEN} ({case.GOLDEN.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
