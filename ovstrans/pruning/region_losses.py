"""Distillation losses that look at segments: the paper's own (OpenTrans sec. 3.2), and its baseline.

The student is the trunk under a Mask2Former head with a projection of its queries; both are trained
along and thrown away. `text-guided` and `vision-guided` draw each query to what the teacher sees in the
region it is matched with (see `frameworks.gkc_distillation`). Names of classes enter by the likeness of
their texts alone: queries and regions are matched by how well they agree, not by class, and nothing is
asked of masks. `semantic` is the baseline that learns from labels too: all of GKC's losses.

Shapes: `B` batch, `Q` queries, `N` regions of an image, `D` width of the head, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.backbone import encode_stages, full_precision, stage_channels
from ovstrans.clip.load import Clip
from ovstrans.clip.text import TextClassifier
from ovstrans.frameworks.base import Batch, TargetRequirements, resolve_options
from ovstrans.frameworks.gkc import GKC
from ovstrans.frameworks.gkc_distillation import distillation_loss
from ovstrans.frameworks.mask2former_head import FEATURES, MaskHead
from ovstrans.pruning.distill import Distillation

HEAD: Mapping[str, Any] = {
    key: GKC.defaults[key]
    for key in ("queries", "width", "heads", "encoder_layers", "encoder_ffn", "decoder_layers", "decoder_ffn")
}
"""The head's sizes as GKC has them; options of the losses here."""


class RegionDistillation(Distillation):
    """What queries hold of regions against what the teacher sees there; every prediction of the decoder counts alike.

    kind: "text-guided" or "vision-guided".  text: the classifier of the data's vocabulary.  options: of
    the head, see `HEAD`. Raises InputError for an option that is not one or does not fit.
    """

    target_requirements = TargetRequirements(segments=True, teacher=True)

    def __init__(self, kind: str, encoder: nn.Module, text: TextClassifier, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.kind = kind
        sizes = resolve_options(f"--distill {kind}", HEAD, options)
        found = stage_channels(encoder)
        self.head = MaskHead([found[name] for name in FEATURES], **sizes)
        dim = text.embeddings.shape[1]
        self.project = nn.ModuleList(nn.Linear(sizes["width"], dim) for _ in range(sizes["decoder_layers"] + 1))
        self.text_scale = nn.Parameter(torch.ones(())) if kind == "text-guided" else None
        self.names: Tensor
        # A class has one place in the structure of texts, whatever it is called besides.
        first = [int((text.owner == kind).nonzero()[0]) for kind in range(text.num_classes)]
        self.register_buffer("names", text.embeddings[first].detach().clone().float(), persistent=False)

    def forward(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """{"regions"}: the mean over predictions. The teacher's views of the regions come with the batch."""
        assert batch.segments is not None and batch.teacher is not None
        found = self.head(encode_stages(student, batch.images))
        words = [self.names[segments.classes] for segments in batch.segments]
        embedded = [project(each) for each, project in zip(found.queries, self.project, strict=True)]
        with full_precision(batch.images):
            losses = [self._loss(F.normalize(each.float(), dim=-1), batch.teacher, words) for each in embedded]
        # Masks targets the decoder's attention but carry no loss; DDP and optimizers want every weight used.
        unused = sum((each.float().sum() for each in found.masks), torch.zeros(())) * 0.0
        return {"regions": torch.stack(losses).mean() + unused}

    def _loss(self, rows: Tensor, teacher: Sequence[Tensor], words: Sequence[Tensor]) -> Tensor:
        """The loss of one prediction: its queries' unit rows [B, Q, E], per image the regions' [N, E]."""
        pairs = [match_by_similarity(row, known) for row, known in zip(rows, teacher, strict=True)]
        return distillation_loss(
            self.kind,
            [row[query] for row, (query, _) in zip(rows, pairs, strict=True)],
            [known[region] for known, (_, region) in zip(teacher, pairs, strict=True)],
            [word[region] for word, (_, region) in zip(words, pairs, strict=True)],
            1.0 if self.text_scale is None else self.text_scale,
        )


class SemanticDistillation(Distillation):
    """All training losses of GKC, labels and all: the baseline that the paper prunes against (sec. 5.3)."""

    def __init__(self, clip: Clip, text: TextClassifier, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.gkc = GKC(encoder=clip.visual, mean=clip.mean, std=clip.std, text=text, options=options)
        self.gkc.backbone = nn.Identity()  # the student takes its place
        self.target_requirements = self.gkc.target_requirements

    def forward(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """GKC's losses: mask, dice, class, and those of its options."""
        height, width = self.gkc.padded_size(batch.images)
        images = F.pad(batch.images, (0, width - batch.images.shape[-1], 0, height - batch.images.shape[-2]))
        return self.gkc.losses_from_features(encode_stages(student, images), batch)


def match_by_similarity(rows: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Each region's query, so that their embeddings agree best in sum; (queries, regions), int64 [min(Q, N)] each.

    rows: [Q, E].  known: [N, E]; unit rows both.
    """
    # Where a student has diverged any pairing will do: the loss is what is to say so.
    likeness = (rows.detach() @ known.t()).nan_to_num().cpu().numpy()
    query, region = linear_sum_assignment(likeness, maximize=True)
    return torch.as_tensor(query, device=rows.device), torch.as_tensor(region, device=rows.device)


def make_region_loss(name: str, clip: Clip, text: TextClassifier, options: Mapping[str, Any]) -> Distillation:
    """The loss of a name: "text-guided", "vision-guided" or "semantic". InputError for an option that is not one."""
    if name == "semantic":
        return SemanticDistillation(clip, text, options)
    return RegionDistillation(name, clip.visual, text, options)
