"""Distillation losses that compare segments: those of the paper (OpenTrans sec. 3.2) and its baseline.

The student is a backbone under a Mask2Former head, with a projection of the queries. Head and projection are trained
along and then dropped. `text-guided` and `vision-guided` pull each query towards the teacher's embedding of the region
that it is matched with (see `frameworks.gkc_distillation`). They match queries and regions by similarity and not by
class, use class names only for the similarity of their texts, and do not train masks. `semantic` is the baseline that
learns from labels too, with all losses of GKC.

Shapes: `B` batch, `Q` queries, `N` regions of an image, `D` width of the head, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.backbone import full_precision
from ovstrans.clip.load import Clip
from ovstrans.clip.text import TextClassifier
from ovstrans.frameworks.base import Batch, TargetRequirements
from ovstrans.frameworks.gkc import GKC
from ovstrans.frameworks.gkc_distillation import distillation_loss
from ovstrans.frameworks.mask2former_head import FEATURES, MaskHead
from ovstrans.frameworks.options import resolve_options
from ovstrans.frameworks.pyramid import encode_levels, level_channels, make_pyramid
from ovstrans.pruning.losses import Distillation

HEAD: Mapping[str, Any] = {
    key: GKC.defaults[key]
    for key in ("queries", "width", "heads", "encoder_layers", "encoder_ffn", "decoder_layers", "decoder_ffn")
}
"""Sizes of the head, as in GKC; they are the options of `RegionDistillation`."""


class RegionDistillation(Distillation):
    """Distance of query embeddings to the teacher's embeddings of regions, the mean over the decoder's predictions.

    Args:
        kind: "text-guided" (OpenTrans eq. 3) or "vision-guided" (eq. 4).
        encoder: Image encoder whose stages the head takes.
        text: Text classifier of the vocabulary of the data.
        options: Options of the head, see `HEAD`.

    Raises:
        InputError: An option is unknown or does not fit.
    """

    target_requirements = TargetRequirements(segments=True, teacher=True)

    def __init__(self, kind: str, encoder: nn.Module, text: TextClassifier, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.kind = kind
        sizes = resolve_options(f"`distill={kind}`", HEAD, options)
        self.pyramid = make_pyramid(encoder)
        found = level_channels(encoder, self.pyramid)
        self.head = MaskHead([found[name] for name in FEATURES], **sizes)
        dim = text.embeddings.shape[1]
        self.project = nn.ModuleList(nn.Linear(sizes["width"], dim) for _ in range(sizes["decoder_layers"] + 1))
        self.text_scale = nn.Parameter(torch.ones(())) if kind == "text-guided" else None
        self.names: Tensor
        # The first name of a class stands for it in the similarity of texts; synonyms do not.
        first = [int((text.owner == kind).nonzero()[0]) for kind in range(text.num_classes)]
        self.register_buffer("names", text.embeddings[first].detach().clone().float(), persistent=False)

    def forward(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the loss `regions`. The teacher's embeddings of the regions come with the batch."""
        assert batch.segments is not None and batch.teacher is not None
        found = self.head(encode_levels(student, batch.images, self.pyramid))
        words = [self.names[segments.classes] for segments in batch.segments]
        embedded = [project(each) for each, project in zip(found.queries, self.project, strict=True)]
        with full_precision(batch.images):
            losses = [self._loss(F.normalize(each.float(), dim=-1), batch.teacher, words) for each in embedded]
        # Masks guide the decoder's attention but carry no loss; DDP and optimizers want every weight used.
        unused = sum((each.float().sum() for each in found.masks), torch.zeros(())) * 0.0
        return {"regions": torch.stack(losses).mean() + unused}

    def training_outputs(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> list[Tensor]:
        """Compute the masks and the embeddings of the queries of every prediction."""
        found = self.head(encode_levels(student, images, self.pyramid))
        embedded = [project(each) for each, project in zip(found.queries, self.project, strict=True)]
        return [*embedded, *found.masks]

    def _loss(self, rows: Tensor, teacher: Sequence[Tensor], words: Sequence[Tensor]) -> Tensor:
        """Return the loss of one prediction from unit rows of queries [B, Q, E] and of each image's regions [N, E]."""
        pairs = [match_by_similarity(row, known) for row, known in zip(rows, teacher, strict=True)]
        return distillation_loss(
            self.kind,
            [row[query] for row, (query, _) in zip(rows, pairs, strict=True)],
            [known[region] for known, (_, region) in zip(teacher, pairs, strict=True)],
            [word[region] for word, (_, region) in zip(words, pairs, strict=True)],
            1.0 if self.text_scale is None else self.text_scale,
        )


class SemanticDistillation(Distillation):
    """All training losses of GKC, labels included: the baseline of the paper (sec. 5.3)."""

    def __init__(self, clip: Clip, text: TextClassifier, options: Mapping[str, Any]) -> None:
        super().__init__()
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


def match_by_similarity(rows: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Match queries and regions one to one so that the sum of their cosine similarities is largest.

    Args:
        rows: Unit rows of the queries [Q, E].
        known: Unit rows of the regions [N, E].

    Returns:
        Indices of the matched queries and of their regions, int64 [min(Q, N)] each.
    """
    # NaN of a student that diverged may be matched anyhow: the loss, which is NaN too, ends the run.
    likeness = (rows.detach() @ known.t()).nan_to_num().cpu().numpy()
    query, region = linear_sum_assignment(likeness, maximize=True)
    return torch.as_tensor(query, device=rows.device), torch.as_tensor(region, device=rows.device)


def make_region_loss(name: str, clip: Clip, text: TextClassifier, options: Mapping[str, Any]) -> Distillation:
    """Make the loss "text-guided", "vision-guided" or "semantic".

    Raises:
        InputError: An option is unknown or does not fit.
    """
    if name == "semantic":
        return SemanticDistillation(clip, text, options)
    return RegionDistillation(name, clip.visual, text, options)
