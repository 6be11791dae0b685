"""Distillation losses that compare segments: those of the paper (OpenTrans sec. 3.2) and its baseline.

`text-guided` and `vision-guided` pull the student's embedding of each segment, its *region*, towards the teacher's (see
`frameworks.gkc_distillation`). What stands for a region is an option:

    region          pooled  the student's own dense embedding, averaged over the segment; nothing but the student learns
                    query   as published: the matched query of a Mask2Former head, which is trained along and dropped
    teacher_region  pooled  the teacher's dense embedding of the same view, averaged likewise
                    crop    as published: the teacher's image embedding of a crop in which the rest is grey

A head that starts at random can lower the loss without looking at the image: if queries are matched by agreement,
whatever they say is matched well. Therefore queries are matched by class, mask and dice (costs 2, 5 and 5, as
published) and learn masks beside, and the backbone learns at a tenth of the rate. `semantic` is the baseline that
learns from labels too, with all losses of GKC.

Shapes: `B` batch, `Q` queries, `N` regions of an image, `D` width of the head, `K` classes, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.backbone import encode_positions, full_precision
from ovstrans.clip.load import Clip
from ovstrans.clip.pooling import pool_segments
from ovstrans.clip.text import TextClassifier
from ovstrans.errors import InputError
from ovstrans.frameworks.base import SIZE_DIVISOR, Batch, TargetRequirements
from ovstrans.frameworks.gkc import GKC
from ovstrans.frameworks.gkc_distillation import distillation_loss
from ovstrans.frameworks.mask2former_head import FEATURES, HeadOutput, MaskHead
from ovstrans.frameworks.mask2former_losses import Criterion, Match, Targets, make_targets, segment_count
from ovstrans.frameworks.options import check_choices, resolve_options
from ovstrans.frameworks.pyramid import encode_levels, level_channels, make_pyramid
from ovstrans.pruning.losses import REGION_OPTIONS, Distillation

REGIONS: Mapping[str, Sequence[str]] = {"region": ("pooled", "query"), "teacher_region": ("pooled", "crop")}
"""The values of the options that say what stands for a region."""
SIZES = ("queries", "width", "heads", "encoder_layers", "encoder_ffn", "decoder_layers", "decoder_ffn")
"""Options of `query` that are sizes of its head."""
WEIGHTS = ("distill_weight", "mask_weight", "dice_weight")
"""Options of `query` that are weights of its losses."""
BACKBONE_RATE = "backbone_rate"
"""Option of every loss with a head of its own: the backbone learns at this times its rate (0.1 in released code)."""
OPTIONS: Mapping[str, Any] = {
    **REGION_OPTIONS,
    BACKBONE_RATE: 0.1,
    **{key: GKC.defaults[key] for key in (*WEIGHTS, "points", *SIZES)},
}
"""Options of text-guided and vision-guided distillation; those of the head and its losses are GKC's."""
CLASS_SCALE = 1 / 0.07
"""Inverse temperature of the class probabilities in the matching: what GKC's, which is learned, starts from."""


class RegionDistillation(Distillation):
    """Distance of the student's embeddings of regions to the teacher's; the base of what can stand for a region.

    Args:
        kind: "text-guided" (OpenTrans eq. 3) or "vision-guided" (eq. 4).
        text: Text classifier of the vocabulary of the data.
        options: See `OPTIONS`.
    """

    def __init__(self, kind: str, text: TextClassifier, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.kind, self.options = kind, options
        crop = options["teacher_region"] == "crop"
        self.target_requirements = TargetRequirements(segments=True, teacher=crop)
        self.uses_names = kind == "text-guided"
        self.text_scale = nn.Parameter(torch.ones(())) if kind == "text-guided" else None
        self.names: Tensor
        # The first name of a class stands for it in the similarity of texts; synonyms do not.
        first = [int((text.owner == kind).nonzero()[0]) for kind in range(text.num_classes)]
        self.register_buffer("names", text.embeddings[first].detach().clone().float(), persistent=False)

    def teacher_regions(self, teacher: nn.Module, batch: Batch) -> Sequence[Tensor]:
        """Return the teacher's embeddings of each image's regions, unit rows [N, E]."""
        if self.options["teacher_region"] == "crop":
            assert batch.teacher is not None
            return batch.teacher
        with torch.no_grad():
            return pooled_regions(teacher, batch)

    def region_loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor], classes: Sequence[Tensor]) -> Tensor:
        """Compute the loss of `frameworks.gkc_distillation`.

        Args:
            student: Of each image unit rows [N, E].
            teacher: Of each image unit rows [N, E].
            classes: Of each image the class indices of the regions, int64 [N].
        """
        words = [self.names[each] for each in classes] if self.kind == "text-guided" else None
        scale = 1.0 if self.text_scale is None else self.text_scale
        return distillation_loss(self.kind, student, teacher, words, scale)


class PooledRegions(RegionDistillation):
    """The student's region is its own dense embedding, averaged over the segment: no head, no matching."""

    def forward(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the loss `regions`."""
        assert batch.segments is not None
        wanted = self.teacher_regions(teacher, batch)
        found = pooled_regions(student, batch)
        with full_precision(batch.images):
            return {"regions": self.region_loss(found, wanted, [each.classes for each in batch.segments])}

    def training_outputs(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> list[Tensor]:
        """Compute the dense embeddings of student and, if it looks at the same view, teacher."""
        with torch.no_grad():
            wanted = [] if self.options["teacher_region"] == "crop" else [encode_positions(teacher, images)]
        return [encode_positions(student, images), *wanted]


class QueryRegions(RegionDistillation):
    """The student's region is the matched query of a Mask2Former head, projected, the mean over the predictions.

    Args:
        kind: "text-guided" or "vision-guided".
        encoder: Image encoder whose stages the head takes.
        text: Text classifier of the vocabulary of the data.
        options: See `OPTIONS`.

    Raises:
        InputError: An option does not fit.
    """

    def __init__(self, kind: str, encoder: nn.Module, text: TextClassifier, options: Mapping[str, Any]) -> None:
        super().__init__(kind, text, options)
        if options["points"] < 1:
            raise InputError(f"`distill={kind}`: option points = {options['points']}; at least 1 is needed")
        self.uses_names = True  # in the class costs
        self.backbone_rate = options[BACKBONE_RATE]
        self.pyramid = make_pyramid(encoder)
        found = level_channels(encoder, self.pyramid)
        self.head = MaskHead([found[name] for name in FEATURES], **{name: options[name] for name in SIZES})
        dim = text.embeddings.shape[1]
        self.project = nn.ModuleList(nn.Linear(options["width"], dim) for _ in range(options["decoder_layers"] + 1))
        self.base = sorted(text.vocabulary.base)
        self.criterion = Criterion(points=options["points"])

    def forward(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted losses `regions`, `mask` and `dice`."""
        assert batch.segments is not None
        wanted = self.teacher_regions(teacher, batch)
        found, size = self._predict(student, batch.images)
        targets = [make_targets(segments, self.base, size) for segments in batch.segments]
        classes, count = [each.classes for each in batch.segments], segment_count(targets)
        totals: dict[str, list[Tensor]] = {name: [] for name in ("regions", "mask", "dice")}
        for queries, masks, project in zip(found.queries, found.masks, self.project, strict=True):
            with full_precision(batch.images):
                rows = F.normalize(project(queries.float()), dim=-1)
                pairs = self._match(rows, masks, targets)
                mine = [row[query] for row, (query, _) in zip(rows, pairs, strict=True)]
                theirs = [known[region] for known, (_, region) in zip(wanted, pairs, strict=True)]
                named = [each[region] for each, (_, region) in zip(classes, pairs, strict=True)]
                totals["regions"].append(self.region_loss(mine, theirs, named))
            mask, dice = self.criterion.mask_losses(masks, targets, pairs, count)
            totals["mask"].append(mask)
            totals["dice"].append(dice)
        weights = dict(zip(totals, WEIGHTS, strict=True))
        return {name: self.options[weights[name]] * torch.stack(each).mean() for name, each in totals.items()}

    def training_outputs(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> list[Tensor]:
        """Compute the masks and the embeddings of the queries of every prediction, and the teacher's embeddings."""
        with torch.no_grad():
            wanted = [] if self.options["teacher_region"] == "crop" else [encode_positions(teacher, images)]
        found, _ = self._predict(student, images)
        embedded = [project(each) for each, project in zip(found.queries, self.project, strict=True)]
        return [*embedded, *found.masks, *wanted]

    def _predict(self, student: nn.Module, images: Tensor) -> tuple[HeadOutput, tuple[int, int]]:
        """Run student and head on images padded to multiples of `SIZE_DIVISOR`; returns the padded size too."""
        height, width = (-(-int(side) // SIZE_DIVISOR) * SIZE_DIVISOR for side in images.shape[-2:])
        padded = F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))
        output: HeadOutput = self.head(encode_levels(student, padded, self.pyramid))
        return output, (height, width)

    def _match(self, rows: Tensor, masks: Tensor, targets: Sequence[Targets]) -> list[Match]:
        """Match queries with unit rows [B, Q, E] and segments at the costs of Mask2Former."""
        scores = CLASS_SCALE * rows.detach() @ self.names[self.base].t()
        # NaN of a student that diverged may be matched anyhow: the loss, which is NaN too, ends the run.
        return self.criterion.match(masks.detach().nan_to_num(), scores.nan_to_num(), targets)


class SemanticDistillation(Distillation):
    """All training losses of GKC, labels included: the baseline of the paper (sec. 5.3)."""

    def __init__(self, clip: Clip, text: TextClassifier, options: Mapping[str, Any]) -> None:
        super().__init__()
        rates = {BACKBONE_RATE: OPTIONS[BACKBONE_RATE]}
        given = {key: value for key, value in options.items() if key in rates}
        self.backbone_rate = resolve_options("`distill=semantic`", rates, given)[BACKBONE_RATE]
        options = {key: value for key, value in options.items() if key not in rates}
        self.gkc = GKC(encoder=clip.visual, mean=clip.mean, std=clip.std, text=text, options=options)
        self.gkc.backbone = nn.Identity()  # the student takes its place
        self.target_requirements = self.gkc.target_requirements

    def forward(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of GKC: mask, dice, class, and those of its options."""
        height, width = self.gkc.padded_size(batch.images)
        images = F.pad(batch.images, (0, width - batch.images.shape[-1], 0, height - batch.images.shape[-2]))
        return self.gkc.losses_from_features(encode_levels(student, images, self.gkc.pyramid), batch)

    def training_outputs(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> list[Tensor]:
        """Compute what GKC's losses start from."""
        return self.gkc.outputs_from_features(encode_levels(student, images, self.gkc.pyramid))


def pooled_regions(encoder: nn.Module, batch: Batch) -> list[Tensor]:
    """Return an encoder's dense embeddings averaged over the segments of a batch, unit rows [N, E] of each image.

    A segment that the last feature map does not cover has a row of zeros, in student and teacher alike.
    """
    assert batch.segments is not None
    dense = encode_positions(encoder, batch.images)
    return [F.normalize(each, dim=1) for each in pool_segments(encoder, dense, [s.masks for s in batch.segments])]


def make_region_loss(name: str, clip: Clip, text: TextClassifier, options: Mapping[str, Any]) -> Distillation:
    """Make the loss "text-guided", "vision-guided" or "semantic".

    Raises:
        InputError: An option is unknown or does not fit.
    """
    if name == "semantic":
        return SemanticDistillation(clip, text, options)
    owner = f"`distill={name}`"
    resolved = resolve_options(owner, OPTIONS, options)
    check_choices(owner, resolved, REGIONS)
    for key in (*WEIGHTS, BACKBONE_RATE):
        if resolved[key] < 0:
            raise InputError(f"{owner}: option {key} = {resolved[key]}; 0 or above is needed")
    if resolved["region"] == "query":
        return QueryRegions(name, clip.visual, text, resolved)
    return PooledRegions(name, text, resolved)
