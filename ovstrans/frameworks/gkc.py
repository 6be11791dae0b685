"""GKC: masks by Mask2Former, classes by comparing query embeddings with text, without CLIP's image encoder.

Han et al. 2023 (arXiv 2303.09181); the "Han et al." of OpenTrans (arXiv 2404.07448). It generalises to new classes by
its training losses: CLIP's embeddings of regions are distilled into the queries (`frameworks.gkc_distillation`),
captions are grounded (`frameworks.gkc_grounding`), and classes are called by synonyms
(`frameworks.gkc_diversification`). None of that is left at inference, which takes backbone, head and one projection.
Where paper and released code differ, the code is followed, as it made the published figures.

Shapes: `B` batch, `Q` queries, `K` classes, `N` segments of an image, `E` embedding, `D` width of the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.backbone import drop_head, full_precision
from ovstrans.clip.text import TextClassifier
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, TargetRequirements
from ovstrans.frameworks.gkc_distillation import METHODS, choose_regions, distillation_terms, mean
from ovstrans.frameworks.gkc_diversification import diversify
from ovstrans.frameworks.gkc_grounding import grounding_loss
from ovstrans.frameworks.gkc_head import ClipPath, QueryClassifier, TrainingOnly
from ovstrans.frameworks.mask2former_head import HeadOutput
from ovstrans.frameworks.mask2former_losses import Match, Targets, class_loss, class_targets
from ovstrans.frameworks.mask_framework import MaskFramework
from ovstrans.frameworks.options import check_choices
from ovstrans.frameworks.pyramid import LAST
from ovstrans.vocabulary.vocabulary import Vocabulary, template_names, use_clean_names

CHOICES: Mapping[str, tuple[str, ...]] = {
    "distill": (*METHODS, "none"),
    "distill_from": ("query", "embedding"),
    "synonyms": ("none", "random"),
    "clip_path": ("none", "sum"),
    "templates": tuple(template_names()),
}


class GKC(MaskFramework):
    """Masks by Mask2Former, classes by the projected query embeddings.

    Options, beside those of `MaskFramework` (here region_drop is 0.5):
        grounding_weight: Weight of the caption grounding loss; 0 turns it off. Each process compares its own images.
        grounding_regions: Most regions of an image that take part in it.
        distill: Distillation method: "text-guided", "vision-guided", "plain" or "none" (see
            `frameworks.gkc_distillation`).
        distill_weight: Weight of the distillation loss, the mean over all pairs and regions.
        distill_pair_weight: Above 0, the pairs are a loss of their own with this weight, and `distill_weight` is the
            weight of the regions alone.
        distill_from: What is distilled. "query": a projection for this purpose. "embedding": the embedding that is
            compared with text, an alternative in the released code ("direct").
        distill_regions: Most regions of a process's batch that take part.
        synonyms: "random": a second class loss in which the classes go by synonyms. "none": no such loss.
        synonyms_weight: Weight of that loss.
        max_scale: Upper bound of the learned inverse temperature; 0, as published, for none.
        clip_path: "none", as published. "sum" is ours, for heads that train for minutes: CLIP's own unit embedding of
            each mask (frozen, as in FC-CLIP) is added, times clip_weight, to the query's. The projections start at
            zero, so training starts from CLIP's zero-shot answer. Inference then needs CLIP's head.
        clip_weight: Weight of CLIP's embedding in "sum".
        templates: Name of the prompt templates (see `vocabulary.vocabulary`), or "dataset" for the vocabulary's own.
    """

    name: ClassVar[str] = "gkc"
    templates: ClassVar[str | None] = "bare"
    defaults: ClassVar[Mapping[str, Any]] = {
        **MaskFramework.COMMON,
        "region_drop": 0.5,
        "grounding_weight": 2.0,
        "grounding_regions": 25,
        "distill": "text-guided",
        "distill_weight": 2.0,
        "distill_pair_weight": 0.0,
        "distill_from": "query",
        "distill_regions": 200,
        "synonyms": "none",
        "synonyms_weight": 2.0,
        "max_scale": 0.0,
        "clip_path": "none",
        "clip_weight": 1.0,
        "templates": templates,
    }

    def __init__(
        self,
        *,
        encoder: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        text: TextClassifier,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder=encoder, mean=mean, std=std, text=text, options=options)
        self._check_options()
        own = self.options
        self.clip_path = ClipPath(self.backbone) if own["clip_path"] == "sum" else None
        drop_head(self.backbone)
        self.classifier = QueryClassifier(own["width"], self.embed_dim, own["max_scale"])
        self.training_only = TrainingOnly(
            own["width"],
            self.embed_dim,
            self.predictions,
            students=own["distill"] != "none" and own["distill_from"] == "query",
            scaled=own["distill"] == "text-guided",
        )
        if self.clip_path is not None:
            for projection in (self.classifier.project, *self.training_only.projections):
                nn.init.zeros_(projection.weight)
                nn.init.zeros_(projection.bias)
        self.target_requirements = TargetRequirements(
            segments=True,
            teacher=own["distill"] != "none",
            captions=own["grounding_weight"] > 0,
            synonyms=own["synonyms"] != "none",
        )

    @classmethod
    def format_class_names(cls, vocabulary: Vocabulary) -> Vocabulary:
        """Use the dataset authors' own names without COCO's suffixes: `wall-other-merged` becomes `wall`."""
        return use_clean_names(vocabulary)

    def components(self) -> dict[str, nn.Module]:
        """Return the components of `MaskFramework`, classifier, training_only, and clip_path if it is on."""
        parts = {**super().components(), "classifier": self.classifier, "training_only": self.training_only}
        return parts if self.clip_path is None else {**parts, "clip_path": self.clip_path}

    def class_scores(self, output: HeadOutput, prediction: int, text: TextClassifier) -> Tensor:
        """Compute class logits [B, Q, K + 1] of the queries; see `MaskFramework.class_scores`."""
        scores: Tensor = self.classifier(self.embedding(output, prediction), text)
        return scores

    def embedding(self, output: HeadOutput, prediction: int) -> Tensor:
        """Project the queries of a prediction into CLIP's space.

        Args:
            output: The predictions of the head.
            prediction: Index of the prediction.

        Returns:
            What is compared with text, [B, Q, E], of any length.
        """
        last = prediction == self.predictions - 1
        project = self.classifier.project if last else self.training_only.projections[prediction]
        embedding: Tensor = project(F.relu(self.classifier.query(output.queries[prediction])))
        if self.clip_path is None:
            return embedding
        clip_embedding: Tensor = self.clip_path(
            output.features["res5" if self.pyramid is None else LAST], output.masks[prediction]
        )
        weight: float = self.options["clip_weight"]
        return embedding.float() + weight * clip_embedding

    def extra_losses(
        self, output: HeadOutput, matches: Sequence[Sequence[Match]], targets: Sequence[Targets], batch: Batch
    ) -> dict[str, Tensor]:
        """Compute those of "grounding", "distill", "distill_pairs" and "synonyms" that the options turn on.

        Each is summed over the predictions of the decoder and weighted; see `MaskFramework.extra_losses`.
        """
        losses: dict[str, Tensor] = {}
        if self.target_requirements.captions:
            losses |= self._grounding(output, matches, batch)
        if self.target_requirements.teacher:
            losses |= self._distillation(output, matches, targets, batch)
        if self.target_requirements.synonyms:
            losses |= self._synonyms(output, matches, targets, batch)
        return losses

    def extra_training_outputs(self, output: HeadOutput, prediction: int, text: TextClassifier) -> list[Tensor]:
        """Compute the embeddings that each extra loss starts from, anew for each loss as in training."""
        outputs = []
        if self.target_requirements.captions:
            outputs.append(self.embedding(output, prediction))
        if self.target_requirements.teacher:
            outputs.append(self._student(output, prediction))
        if self.target_requirements.synonyms:
            outputs.append(self.class_scores(output, prediction, text))
        return outputs

    def _grounding(self, output: HeadOutput, matches: Sequence[Sequence[Match]], batch: Batch) -> dict[str, Tensor]:
        """Compute the caption grounding loss."""
        nouns = self._required(batch.nouns, "the nouns of captions")
        losses = []
        for prediction, match in enumerate(matches):
            embedding = self.embedding(output, prediction)
            queries = [_draw(self.options["grounding_regions"], query) for query, _ in match]
            regions = [embedding[row, query] for row, query in enumerate(queries)]
            losses.append(grounding_loss(nouns, regions, self.classifier.scale))
        return {"grounding": self.options["grounding_weight"] * torch.stack(losses).sum()}

    def _distillation(
        self, output: HeadOutput, matches: Sequence[Sequence[Match]], targets: Sequence[Targets], batch: Batch
    ) -> dict[str, Tensor]:
        """Compute the distillation loss; the same regions take part in every prediction."""
        teacher = self._required(batch.teacher, "a teacher's view of the segments")
        names = self._names(targets, batch)
        chosen = choose_regions([len(each) for each in teacher], self.options["distill_regions"])
        takes_part = [
            torch.zeros(len(each), dtype=torch.bool).index_fill(0, index, True).to(each.device)
            for each, index in zip(teacher, chosen, strict=True)
        ]
        scale = self.training_only.text_scale
        terms = []
        for prediction, match in enumerate(matches):
            student = self._student(output, prediction)
            pairs = [
                (query[mask[segment]], segment[mask[segment]])
                for (query, segment), mask in zip(match, takes_part, strict=True)
            ]
            student_rows = [
                F.normalize(row[query].float(), dim=1) for row, (query, _) in zip(student, pairs, strict=True)
            ]
            teacher_rows = [rows[segment].float() for rows, (_, segment) in zip(teacher, pairs, strict=True)]
            name_rows = [rows[segment].float() for rows, (_, segment) in zip(names, pairs, strict=True)]
            with full_precision(student):
                method, factor = self.options["distill"], 1.0 if scale is None else scale
                terms.append(distillation_terms(method, student_rows, teacher_rows, name_rows, factor))
        weight, pair_weight = self.options["distill_weight"], self.options["distill_pair_weight"]
        if not pair_weight:
            return {"distill": weight * _sum_of_means(torch.cat(each) for each in terms)}
        return {
            "distill": weight * _sum_of_means(regions for regions, _ in terms),
            "distill_pairs": pair_weight * _sum_of_means(pairs for _, pairs in terms),
        }

    def _student(self, output: HeadOutput, prediction: int) -> Tensor:
        """Compute what is distilled, [B, Q, E], of any length."""
        if self.options["distill_from"] == "embedding":
            return self.embedding(output, prediction)
        student: Tensor = self.training_only.students[prediction](self.classifier.query(output.queries[prediction]))
        return student

    def _synonyms(
        self, output: HeadOutput, matches: Sequence[Sequence[Match]], targets: Sequence[Targets], batch: Batch
    ) -> dict[str, Tensor]:
        """Compute the class loss under synonyms, with the matches of the class loss."""
        synonyms = self._required(batch.synonyms, "synonyms of the segments' classes")
        text = self.base_text
        diversified = diversify(targets, synonyms, text.num_classes)
        losses = []
        for prediction, match in enumerate(matches):
            embedding = self.embedding(output, prediction)
            with full_precision(embedding):
                unit = F.normalize(embedding.float(), dim=-1)
                synonym_scores = self.classifier.scale * unit @ diversified.rows.float().t()
                scores = diversified.scores(self.classifier(embedding, text), synonym_scores)
            images, queries, columns = scores.shape
            drop = self.options["region_drop"]
            labels = class_targets((images, queries), columns - 1, diversified.targets, match, drop=drop)
            losses.append(class_loss(scores, labels, self.options["void_weight"]))
        return {"synonyms": self.options["synonyms_weight"] * torch.stack(losses).sum()}

    def _names(self, targets: Sequence[Targets], batch: Batch) -> list[Tensor]:
        """Return the text embedding of each segment's class, [N, E] per image: the chosen synonym or the first name."""
        if batch.synonyms is not None:
            return list(batch.synonyms)
        text = self.base_text
        first = torch.full((text.num_classes,), len(text.owner), device=text.owner.device)
        rows = torch.arange(len(text.owner), device=first.device)
        first = first.scatter_reduce(0, text.owner, rows, reduce="amin")
        return [text.embeddings[first[each.classes]] for each in targets]

    def _required(self, embeddings: tuple[Tensor, ...] | None, what: str) -> tuple[Tensor, ...]:
        """Return embeddings of the batch; InputError if they are missing."""
        if embeddings is None:
            raise InputError(
                f"framework {self.name}: its losses need {what}, the batch has none; "
                "`training.teacher_targets` provides them"
            )
        return embeddings

    def _check_options(self) -> None:
        """Raise InputError for a value that is not permitted."""
        owner = f"framework {self.name}"
        check_choices(owner, self.options, CHOICES)
        for key in ("grounding_weight", "distill_weight", "distill_pair_weight", "synonyms_weight", "max_scale"):
            if self.options[key] < 0:
                raise InputError(f"{owner}: option {key} = {self.options[key]}; 0 or above is needed")
        for key in ("grounding_regions", "distill_regions"):
            if self.options[key] < 1:
                raise InputError(f"{owner}: option {key} = {self.options[key]}; at least 1 is needed")


def _sum_of_means(predictions: Iterable[Tensor]) -> Tensor:
    """Average the terms of each prediction and sum over predictions."""
    return torch.stack([mean(terms) for terms in predictions]).sum()


def _draw(most: int, items: Tensor) -> Tensor:
    """Return the items [n], or `most` of them drawn at random."""
    return items if len(items) <= most else items[torch.randperm(len(items))[:most].to(items.device)]
