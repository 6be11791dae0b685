"""DeOP's released code against ours, on the same weights: how far apart they are, and the golden file.

    python -m tests.benchmarks.golden_deop --upstream FOLDER --commit HASH [--write] [--published]

FOLDER holds the released repository (its `mask_former/` and `third_party/CLIP/`), outside this one. CLIP, the text
prompt, the decoder of anchors, the fusion and the losses run as they are, on the CPU, in eval mode, on given proposals;
what they import of detectron2 is replaced by a few lines. All three ways to sever are compared. --write renews
`tests/frameworks/golden/deop.safetensors`. --published compares at the published size instead (ViT-B/16, anchors of
512 dimensions, six learned positions) and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ovstrans import files
from ovstrans.clip.load import Clip
from ovstrans.frameworks.deop import DeOP
from tests.benchmarks.golden_fcclip import Registry, module, postprocess
from tests.frameworks import deop_case as case
from tests.frameworks import golden_case

SKIPPED = ("", ".modeling", ".modeling.clip_adapter", ".modeling.transformer", ".utils")
"""Upstream packages whose `__init__` would import datasets, backbones and evaluators."""


class Images:
    """Images of one size."""

    def __init__(self, images: list[Tensor]) -> None:
        self.tensor = torch.stack(images)
        self.image_sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]

    @classmethod
    def from_tensors(cls, images: list[Tensor], divisor: int) -> Images:
        return cls(images)


def stand_in(upstream: Path) -> None:
    """Make `mask_former` and `clip` of a folder importable without detectron2 and tkinter."""
    registry, nothing = Registry(), None
    module("turtle", ScrolledCanvas=nothing)
    module("detectron2")
    module("detectron2.config", configurable=lambda function: function)
    catalog = SimpleNamespace(get=lambda _: SimpleNamespace(stuff_classes=[each[0] for each in case.NAMES.classes]))
    module("detectron2.data", MetadataCatalog=catalog)
    module("detectron2.layers", Conv2d=nn.Conv2d, Linear=nn.Linear)
    module("detectron2.modeling", META_ARCH_REGISTRY=registry, build_backbone=nothing, build_sem_seg_head=nothing)
    module("detectron2.modeling.backbone", Backbone=nn.Module)
    module("detectron2.modeling.postprocessing", sem_seg_postprocess=postprocess)
    module("detectron2.structures", ImageList=Images, BitMasks=nothing)
    module("detectron2.utils")
    module("detectron2.utils.comm", get_local_rank=lambda: 0, synchronize=nothing, get_world_size=lambda: 1)
    module("detectron2.utils.logger", log_first_n=nothing)
    for name in SKIPPED:
        module(f"mask_former{name}")
        folder = upstream / "mask_former" / name.replace(".", "/").strip("/")
        sys.modules[f"mask_former{name}"].__path__ = [str(folder)]
    sys.path.insert(0, str(upstream / "third_party" / "CLIP"))
    from mask_former.modeling.clip_adapter import adapter  # type: ignore[import-not-found]

    names = ("ClipAdapter", "MaskFormerClipAdapter", "MaskFormerClipFeatureAdapter")
    package = sys.modules["mask_former.modeling.clip_adapter"]
    for name in names:
        setattr(package, name, getattr(adapter, name))
    package.build_prompt_learner = nothing  # type: ignore[attr-defined]


def theirs(source: Clip, ours: DeOP, mode: str) -> Any:
    """Upstream's model with our weights."""
    from clip.model import CLIP  # type: ignore[import-not-found]
    from mask_former import zero_shot_clipfeat_upsample_vit16_query2D_maskvit as meta  # type: ignore[import-not-found]
    from mask_former.modeling.clip_adapter.adapter import MaskFormerClipFeatureAdapter
    from mask_former.modeling.clip_adapter.text_prompt import LearnablePromptExtractor
    from mask_former.modeling.transformer.position_encoding import PositionEmbeddingSine
    from mask_former.modeling.transformer.transformer import TransformerDecoderLayerLinear, TransformerDecoderLinear

    options, dim, visual = ours.options, ours.embed_dim, source.visual
    layers = len(visual.transformer.resblocks)
    text = source.model.transformer
    clip = CLIP(
        dim,
        visual.image_size[0],
        layers,
        visual.conv1.out_channels,
        visual.patch_size[0],
        77,
        source.model.token_embedding.num_embeddings,
        text.width,
        text.resblocks[0].attn.num_heads,
        text.layers,
        position_layers=[layer for layer in options["position_layers"] if layer],
        input_resolution_run=options["position_grid"] * visual.patch_size[0],
        learn_position=True,
        layermaskvit=[layers - 1],
        maskselfattn=mode != "with-mask",
    )
    state = {key: value for key, value in source.model.state_dict().items() if key != "attn_mask"}
    own = ours.state_dict()
    for layer in options["position_layers"]:
        place = f"transformer.resblocks.{layer}." if layer else ""
        state[f"visual.{place}learned_position"] = own[f"positions.by_layer.{layer}"]
    missing = clip.load_state_dict(state, strict=False)
    assert not missing.missing_keys and set(missing.unexpected_keys) <= {"logit_bias"}, missing

    prompts = LearnablePromptExtractor(options["prompt_width"], (options["prompt_length"], 0))
    prompts.init_buffer(clip)
    prompts.prefix_prompt.data.copy_(own["prompt.vectors"])
    adapter = MaskFormerClipFeatureAdapter.__new__(MaskFormerClipFeatureAdapter)
    nn.Module.__init__(adapter)
    adapter.clip_model, adapter.prompt_learner, adapter.text_feature_buffer = clip, prompts, {}
    adapter.non_object_embedding = nn.Parameter(own["classifier.non_object"][None].clone())

    kind = meta.ZeroShotClipfeatUpsample_addnorm_vit16Query2D_maskvit
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    sizes = (dim, options["anchor_heads"], options["anchor_ffn"], 0.1, "relu", False)
    model.decoder = TransformerDecoderLinear(
        TransformerDecoderLayerLinear(*sizes, True, False),
        options["anchor_layers"],
        nn.LayerNorm(dim),
        return_intermediate=True,
    )
    model.pe_layer = PositionEmbeddingSine(dim // 2, normalize=True)
    model.query_embedding = nn.Embedding(options["queries"], dim)
    load_anchors(model, own)
    model.clip_adapter = adapter
    model.clipAsBackbone = model.mask_downsample = model.panoptic_on = False
    model.maskselfattn, model.maskselfattnsoftmax, model.ps_shortcut = mode != "with-mask", mode == "mask-guided", 1.0
    model.output_sig, model.size_divisibility = 3.0, 32
    model.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
    model.register_buffer("pixel_std", torch.ones(3, 1, 1))
    model.backbone = nn.Identity()
    model.sem_seg_head = Given()
    return model.eval()


class Given(nn.Module):
    """A head that is given its masks."""

    masks: Tensor

    def forward(self, _features: Tensor) -> dict[str, Any]:
        return {"pred_masks": self.masks, "aux_outputs": []}


def load_anchors(model: Any, own: dict[str, Tensor]) -> None:
    """Give upstream's decoder our weights."""
    state = model.decoder.state_dict()
    for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
        state[f"layers.0.self_attn.{name}"] = own[f"anchors.layers.0.self_attention.{name}"]
        state[f"layers.0.multihead_attn_my.{name}"] = own[f"anchors.layers.0.cross_attention.{name}"]
        state[f"outlayer.self_attn.{name}"] = own[f"anchors.self_attention.{name}"]
    for kind in ("weight", "bias"):
        state[f"layers.0.linear1.{kind}"] = own[f"anchors.layers.0.feed_forward.0.{kind}"]
        state[f"layers.0.linear2.{kind}"] = own[f"anchors.layers.0.feed_forward.3.{kind}"]
        for number in range(3):
            state[f"layers.0.norm{number + 1}.{kind}"] = own[f"anchors.layers.0.norms.{number}.{kind}"]
        state[f"outlayer.norm1.{kind}"] = own[f"anchors.norm.{kind}"]
        both = [own[f"anchors.{name}.{kind}"] for name in ("query", "key")]
        dead = torch.full_like(both[0], torch.nan)  # values are not projected: nothing may come of these rows
        state[f"outlayer.multihead_attn_my.in_proj_{kind}"] = torch.cat([*both, dead])
    model.decoder.load_state_dict(state)
    model.query_embedding.weight.data.copy_(own["anchors.queries"])


def answers(model: Any, size: tuple[int, int]) -> dict[str, Tensor]:
    """Upstream's answers, by the names of `deop_case.answers`."""
    from mask_former.modeling.criterion_decoder import SetCriterion  # type: ignore[import-not-found]

    kept: dict[str, Tensor] = {}
    adapter, visual = model.clip_adapter, model.clip_adapter.clip_model.visual
    model.sem_seg_head.masks = case.mask_logits(size)
    original = adapter.get_sim_logits

    def keep_logits(text: Tensor, embeddings: Tensor) -> Tensor:
        kept["text"], kept["embeddings"] = text[:-1], embeddings
        kept["class_logits"] = original(text, embeddings)
        return kept["class_logits"]

    def keep_features(_module: Any, _inputs: Any, output: Any) -> None:
        kept["features"] = output[0].permute(0, 3, 1, 2)

    adapter.get_sim_logits = keep_logits
    handle = visual.register_forward_hook(keep_features)
    given = [{"image": image, "meta": {"dataset_name": "case"}} for image in case.images(size)]
    with torch.no_grad():
        kept["semantic"] = torch.stack([each["sem_seg"] for each in model(given)])
    handle.remove()
    adapter.get_sim_logits = original
    criterion = SetCriterion.__new__(SetCriterion)
    nn.Module.__init__(criterion)
    criterion.num_class, criterion.use_ignore_idx = len(case.NAMES), False
    criterion.register_buffer("empty_weight", torch.ones(len(case.NAMES) + 1))
    outputs = {"pred_logits": kept["class_logits"], "pred_masks": model.sem_seg_head.masks}
    targets = [{"sem_seg": label} for label in case.labels(size)]
    losses = criterion.loss_labels_bce(outputs, targets, None, 1)
    kept["loss.focal"], kept["loss.dice"] = losses["loss_ce"], losses["loss_decoder_dice"]
    return kept


def main() -> None:
    """Compare, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--upstream", type=Path, required=True, help="folder of the released repository")
    parser.add_argument("--commit", required=True, help="its commit, for the record")
    parser.add_argument("--write", action="store_true", help="renew the golden file")
    parser.add_argument("--published", action="store_true", help="ViT-B/16 and the published sizes")
    given = parser.parse_args()
    stand_in(given.upstream)
    source, changes, sizes = case.clip(), {}, case.SIZES
    if given.published:
        source, changes, sizes = case.published_clip(), case.PUBLISHED, ((224, 224), (512, 352))
    golden: dict[str, Tensor] = {}
    for mode, own in case.MODES.items():
        ours = case.model(source, **changes, **own)
        model = theirs(source, ours, mode)
        for size in sizes:
            expected, found = answers(model, size), case.answers(source, ours, size)
            assert expected.keys() == found.keys(), expected.keys() ^ found.keys()
            print(f"{mode}, {size[0]}x{size[1]}")
            for key, value in expected.items():
                print(f"  {key:14} {golden_case.difference(found[key], value):.1e}")
                if mode == "with-mask" or key == "features":
                    golden[f"{mode}.{size[0]}x{size[1]}.{key}"] = case.shown(key, value).contiguous()
    if given.write and not given.published:
        about = {
            "what": "answers of the released code to the case in tests/frameworks/deop_case.py",
            "upstream": f"github.com/CongHan0808/DeOP @ {given.commit}",
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "seed": str(golden_case.SEED),
            "command": f"python -m tests.benchmarks.golden_deop --upstream FOLDER --commit {given.commit} --write",
        }
        files.write_tensors(case.GOLDEN, golden, about)
        print(f"wrote {case.GOLDEN} ({case.GOLDEN.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
