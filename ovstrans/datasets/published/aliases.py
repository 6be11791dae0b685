"""Names that detectron2, Mask2Former, FC-CLIP and GKC register datasets under, and ours for them."""

from __future__ import annotations

_SPLITS = {"train": "train", "val": "val", "test": "val"}
"""What `{}` may be, and the split it means: some of these projects call COCO's val2017 "test"."""

_REGISTERED = {
    "coco-panoptic": (
        "openvocab_coco_2017_{}_panoptic",
        "openvocab_coco_2017_{}_panoptic_with_sem_seg",
        "coco_2017_{}_panoptic",
        "coco_2017_{}_panoptic_with_sem_seg",
        "coco_2017_{}_panoptic_caption",
    ),
    "coco-stuff": ("openvocab_coco_2017_{}_stuff_sem_seg", "coco_2017_{}_stuff_sem_seg"),
    "ade20k-150": (
        "openvocab_ade20k_panoptic_{}",
        "openvocab_ade20k_sem_seg_{}",
        "ade20k_panoptic_{}",
        "ade20k_sem_seg_{}",
    ),
    "ade20k-847": ("openvocab_ade20k_full_sem_seg_{}", "ade20k_full_sem_seg_{}"),
    "cityscapes": (
        "openvocab_cityscapes_fine_panoptic_{}",
        "cityscapes_fine_panoptic_{}",
        "cityscapes_fine_sem_seg_{}",
    ),
    "pas-20": ("openvocab_pascal20_sem_seg_{}",),
    "pas-21": ("openvocab_pascal21_sem_seg_{}",),
    "context-59": ("openvocab_pascal_ctx59_sem_seg_{}", "pc_{}_sem_seg"),
    "context-459": ("openvocab_pascal_ctx459_sem_seg_{}", "pc_full_{}_sem_seg"),
    "vspw": ("vspw_{}_sem_seg",),
    "vipseg": ("vipseg_{}_image",),
}

ALIASES = {
    name.format(word): (ours, split)
    for ours, names in _REGISTERED.items()
    for name in names
    for word, split in _SPLITS.items()
}
"""Our name and split for each registered name."""
