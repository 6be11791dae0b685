"""GKC: masks by Mask2Former, named by comparing what each query holds with text, without CLIP's image encoder.

Han et al. 2023 (arXiv 2303.09181); the "Han et al." of OpenTrans (arXiv 2404.07448). What keeps it open to new
names is in its training: CLIP's view of each region is distilled into the queries, captions are
grounded, and classes go by synonyms. At inference none of that is left: trunk, head, one projection.
Where paper and released code differ, the code is followed; it made the published figures.

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
from ovstrans.frameworks.gkc_distillation import KINDS, chosen_regions, distillation_terms, mean
from ovstrans.frameworks.gkc_diversification import diversify
from ovstrans.frameworks.gkc_grounding import grounding_loss
from ovstrans.frameworks.gkc_head import ClipPool, QueryClassifier, TrainingOnly
from ovstrans.frameworks.mask2former_head import HeadOutput
from ovstrans.frameworks.mask2former_losses import Match, Targets, class_loss, class_targets
from ovstrans.frameworks.mask_framework import MaskFramework
from ovstrans.vocabulary.prompts import template_names, use_clean_names
from ovstrans.vocabulary.vocabulary import Vocabulary


class GKC(MaskFramework):
    """Masks by Mask2Former, classes by the queries' own embeddings.

    Options, beside `MaskFramework`'s (here region_drop is 0.5):
      grounding_weight    of the caption loss; 0 turns it off. Each process compares the images it has
      grounding_regions   most regions of an image that take part in it
      distill             "text-guided", "vision-guided", "plain" or "none"; see `gkc_distillation`
      distill_weight      of that loss, the mean over pairs and regions together
      distill_pair_weight above 0: pairs are a loss of their own with this weight, distill_weight is the
                          regions' alone
      distill_from        what is distilled: "query", by a projection of its own; "embedding", the very
                          vector that is compared with text, as the code offers ("direct")
      distill_regions     most regions of a process's batch that take part in it
      synonyms            "random": a further class loss under synonyms of the classes; "none"
      synonyms_weight     of that loss
      max_scale           bound on the learned inverse temperature; 0, as published, for none
      clip_path           "none", as published. "sum", ours, for heads that train for minutes: clip_weight times
                          the unit embedding that CLIP's own attention pool makes of each mask (frozen, as
                          FC-CLIP's) is added to the query's, whose projections start at zero, so training
                          starts from CLIP's zero-shot answer. Inference then needs that pool
      templates           prompts of class names, by name (see `datasets.templates`), or "dataset"
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
        self.clip_path = ClipPool(self.backbone) if own["clip_path"] == "sum" else None
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
        """The vocabulary by its authors' own names, COCO's marks taken out: `wall-other-merged` is `wall`."""
        return use_clean_names(vocabulary)

    def components(self) -> dict[str, nn.Module]:
        """trunk, pixel_decoder, transformer_decoder, classifier, and clip_path where the option is on;
        training_only takes no part in inference."""
        parts = {**super().components(), "classifier": self.classifier, "training_only": self.training_only}
        return parts if self.clip_path is None else {**parts, "clip_path": self.clip_path}

    def class_scores(self, found: HeadOutput, prediction: int, text: TextClassifier) -> Tensor:
        """Class logits [B, Q, K + 1] of one of the decoder's predictions, the void last."""
        return self.classifier(self.embedding(found, prediction), text)

    def extra_losses(
        self, found: HeadOutput, matches: Sequence[Sequence[Match]], targets: Sequence[Targets], batch: Batch
    ) -> dict[str, Tensor]:
        """{"grounding", "distill", "distill_pairs", "synonyms"}, those whose options are on."""
        losses: dict[str, Tensor] = {}
        if self.target_requirements.captions:
            losses |= self._grounding(found, matches, batch)
        if self.target_requirements.teacher:
            losses |= self._distillation(found, matches, targets, batch)
        if self.target_requirements.synonyms:
            losses |= self._synonyms(found, matches, targets, batch)
        return losses

    def extra_training_outputs(self, found: HeadOutput, prediction: int, text: TextClassifier) -> list[Tensor]:
        """What each further loss starts from, worked out anew for each, as in training."""
        outputs = []
        if self.target_requirements.captions:
            outputs.append(self.embedding(found, prediction))
        if self.target_requirements.teacher and self.options["distill_from"] == "embedding":
            outputs.append(self.embedding(found, prediction))
        elif self.target_requirements.teacher:
            student = self.training_only.students[prediction]
            outputs.append(student(self.classifier.query(found.queries[prediction])))
        if self.target_requirements.synonyms:
            outputs.append(self.class_scores(found, prediction, text))
        return outputs

    def embedding(self, found: HeadOutput, prediction: int) -> Tensor:
        """[B, Q, E], of any length: what is compared with text, at one of the decoder's predictions."""
        last = prediction == self.predictions - 1
        project = self.classifier.project if last else self.training_only.projections[prediction]
        embedding = project(F.relu(self.classifier.query(found.queries[prediction])))
        if self.clip_path is None:
            return embedding
        seen = self.clip_path(found.features["res5"], found.masks[prediction])
        return embedding.float() + self.options["clip_weight"] * seen

    def _grounding(self, found: HeadOutput, matches: Sequence[Sequence[Match]], batch: Batch) -> dict[str, Tensor]:
        """The caption loss, summed over predictions."""
        nouns = self._guided(batch.nouns, "the nouns of captions")
        total = []
        for prediction, pairs in enumerate(matches):
            embedding = self.embedding(found, prediction)
            taken = [_at_most(self.options["grounding_regions"], query) for query, _ in pairs]
            regions = [embedding[row, query] for row, query in enumerate(taken)]
            total.append(grounding_loss(nouns, regions, self.classifier.scale))
        return {"grounding": self.options["grounding_weight"] * torch.stack(total).sum()}

    def _distillation(
        self, found: HeadOutput, matches: Sequence[Sequence[Match]], targets: Sequence[Targets], batch: Batch
    ) -> dict[str, Tensor]:
        """Regions drawn to the teacher's view of them, summed over predictions; the same regions in each."""
        known = self._guided(batch.teacher, "a teacher's view of the segments")
        names = self._names(targets, batch)
        chosen = chosen_regions([len(each) for each in known], self.options["distill_regions"])
        taking_part = [
            torch.zeros(len(each), dtype=torch.bool).index_fill(0, index, True).to(each.device)
            for each, index in zip(known, chosen, strict=True)
        ]
        scale = self.training_only.text_scale
        terms = []
        for prediction, pairs in enumerate(matches):
            student = self._student(found, prediction)
            kept = [
                (query[mask[segment]], segment[mask[segment]])
                for (query, segment), mask in zip(pairs, taking_part, strict=True)
            ]
            seen = [F.normalize(row[query].float(), dim=1) for row, (query, _) in zip(student, kept, strict=True)]
            aims = [rows[segment].float() for rows, (_, segment) in zip(known, kept, strict=True)]
            words = [rows[segment].float() for rows, (_, segment) in zip(names, kept, strict=True)]
            with full_precision(student):
                kind = self.options["distill"]
                terms.append(distillation_terms(kind, seen, aims, words, 1.0 if scale is None else scale))
        weight, apart = self.options["distill_weight"], self.options["distill_pair_weight"]
        if not apart:
            return {"distill": weight * _total(torch.cat(each) for each in terms)}
        return {"distill": weight * _total(q for q, _ in terms), "distill_pairs": apart * _total(p for _, p in terms)}

    def _student(self, found: HeadOutput, prediction: int) -> Tensor:
        """[B, Q, E], of any length: what is distilled."""
        if self.options["distill_from"] == "embedding":
            return self.embedding(found, prediction)
        return self.training_only.students[prediction](self.classifier.query(found.queries[prediction]))

    def _synonyms(
        self, found: HeadOutput, matches: Sequence[Sequence[Match]], targets: Sequence[Targets], batch: Batch
    ) -> dict[str, Tensor]:
        """The class loss under other names, by the same matching, summed over predictions."""
        chosen = self._guided(batch.synonyms, "synonyms of the segments' classes")
        text = self.base_text
        other = diversify(targets, chosen, text.num_classes)
        total = []
        for prediction, pairs in enumerate(matches):
            embedding = self.embedding(found, prediction)
            with full_precision(embedding):
                unit = F.normalize(embedding.float(), dim=-1)
                new = self.classifier.scale * unit @ other.rows.float().t()
                scores = other.scores(self.classifier(embedding, text), new)
            images, queries, names = scores.shape
            drop = self.options["region_drop"]
            wanted = class_targets((images, queries), names - 1, other.targets, pairs, drop=drop)
            total.append(class_loss(scores, wanted, self.options["void_weight"]))
        return {"synonyms": self.options["synonyms_weight"] * torch.stack(total).sum()}

    def _names(self, targets: Sequence[Targets], batch: Batch) -> list[Tensor]:
        """Per image the text embedding of each segment's class, [N, E]: the synonym where one was chosen."""
        if batch.synonyms is not None:
            return list(batch.synonyms)
        text = self.base_text
        first = torch.full((text.num_classes,), len(text.owner), device=text.owner.device)
        rows = torch.arange(len(text.owner), device=first.device)
        first = first.scatter_reduce(0, text.owner, rows, reduce="amin")
        return [text.embeddings[first[each.classes]] for each in targets]

    def _guided(self, found: tuple[Tensor, ...] | None, what: str) -> tuple[Tensor, ...]:
        if found is None:
            raise InputError(f"framework {self.name}: its losses need {what}, the batch has none; see training.guides")
        return found

    def _check_options(self) -> None:
        choices = {
            "distill": (*KINDS, "none"),
            "distill_from": ("query", "embedding"),
            "synonyms": ("none", "random"),
            "clip_path": ("none", "sum"),
            "templates": tuple(template_names()),
        }
        for key, known in choices.items():
            if self.options[key] not in known:
                raise InputError(
                    f"framework {self.name}: option {key} = {self.options[key]!r}; use {', '.join(map(repr, known))}"
                )
        for key in ("grounding_weight", "distill_weight", "distill_pair_weight", "synonyms_weight", "max_scale"):
            if self.options[key] < 0:
                raise InputError(f"framework {self.name}: option {key} = {self.options[key]}; 0 or above is needed")
        for key in ("grounding_regions", "distill_regions"):
            if self.options[key] < 1:
                raise InputError(f"framework {self.name}: option {key} = {self.options[key]}; at least 1 is needed")


def _total(predictions: Iterable[Tensor]) -> Tensor:
    """The sum over predictions of the mean of their terms."""
    return torch.stack([mean(terms) for terms in predictions]).sum()


def _at_most(most: int, items: Tensor) -> Tensor:
    """The items [n], or `most` of them drawn at random."""
    return items if len(items) <= most else items[torch.randperm(len(items))[:most].to(items.device)]
