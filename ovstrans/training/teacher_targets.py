"""Training targets that a frozen CLIP, the teacher, computes during training.

`TeacherTargets` fills the fields of a batch that `TargetRequirements` names: the teacher's embedding of each segment,
nouns of the caption, synonyms of class names (Han et al. 2023, GKC, arXiv 2303.09181). It belongs to the run and not to
the framework, so no part of it is in a checkpoint.

The targets of a step depend on (seed, step, rank) and the batch of the step alone. Random draws have a generator of
their own. Embeddings of segments are computed a batch at a time and not kept, since in another batch the last bits
could differ. What is kept, nouns and the likely names of segments, is computed one at a time.

Shapes: `N` segments of an image, `M` nouns of a caption, `S` side of a region, `E` embedding.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.load import Clip
from ovstrans.clip.text import embed_texts
from ovstrans.datasets.segments import Segments
from ovstrans.environment import Precision, images_to_device, to_device
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, TargetRequirements
from ovstrans.training.batches import Labelled
from ovstrans.training.distributed import World
from ovstrans.training.loop import derive_seed
from ovstrans.training.synonym_filter import SynonymFilter
from ovstrans.vocabulary.nouns import extract_nouns
from ovstrans.vocabulary.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

NOUN_DROP = 0.25
"""Probability that a noun of a caption is left out (GKC's code)."""
MAX_NOUNS = 5
"""Largest number of nouns of a caption (GKC's code)."""
CHUNK = 64
"""Number of regions that the image encoder sees at once."""


class TeacherTargets:
    """Computes the targets of batches, by a copy of a CLIP as it is when this is made.

    Args:
        clip: The CLIP; make this before its weights change.
        requirements: The targets to compute.
        vocabulary: Classes of the segments, with names as the framework writes them.
        device: Device to compute on.
        precision: Precision of the image encoder.
        seed: Seed of the run.
        rank: Rank of this process.

    Raises:
        InputError: A text encoder is needed and the CLIP has none.
    """

    def __init__(
        self,
        clip: Clip,
        requirements: TargetRequirements,
        vocabulary: Vocabulary,
        *,
        device: torch.device,
        precision: Precision,
        seed: int,
        rank: int = 0,
    ) -> None:
        self.requirements, self.device, self.precision = requirements, device, precision
        self.seed, self.rank = seed, rank
        self.clip = replace(clip, model=copy.deepcopy(clip.model).eval().requires_grad_(False))
        to_device(self.clip.model, device)
        self._nouns: dict[str, Tensor] = {}
        if requirements.captions and not clip.has_text:
            raise InputError(f"{clip.pretrained}: holds the image encoder only, but captions need the text encoder")
        computed = _numerics(device, precision)
        self.synonym_filter = (
            SynonymFilter(self.clip, vocabulary, self.encode_regions, computed) if requirements.synonyms else None
        )

    def attach(
        self, batches: Iterator[Batch], start: int, requirements: TargetRequirements | None = None
    ) -> Iterator[Batch]:
        """Yield batches with their targets.

        Args:
            batches: The batches of the steps from `start` on.
            start: Number of the first step, counted from 0.
            requirements: The targets that these steps need; None for all that this was made for.
        """
        if requirements is not None and not _needs_teacher(requirements):
            yield from batches
            return
        try:
            for number, batch in enumerate(batches, start):
                yield self.add(batch, number)
        finally:
            if self.synonym_filter is not None:
                self.synonym_filter.save()

    def add(self, batch: Batch, step: int) -> Batch:
        """Return a batch with its targets.

        Args:
            batch: A batch on the device. Its segments have regions if the teacher or synonyms are required.
            step: Number of the step, counted from 0.
        """
        draws = torch.Generator().manual_seed(derive_seed(self.seed, "guide", step, self.rank))
        if self.requirements.captions:
            batch = replace(batch, nouns=tuple(self._noun_embeddings(caption, draws) for caption in batch.captions))
        if self.requirements.synonyms:
            batch = replace(
                batch, synonyms=tuple(self._synonym_embeddings(each, draws) for each in batch.segments or ())
            )
        if self.requirements.teacher:
            regions = [_regions_of(segments) for segments in batch.segments or ()]
            embeddings = self.encode_regions(torch.cat(regions))
            batch = replace(batch, teacher=torch.split(embeddings, [len(each) for each in regions]))
        return batch

    def encode_regions(self, regions: Tensor) -> Tensor:
        """Return CLIP's image embeddings, unit rows [N, E], of regions uint8 [N, 3, S, S]."""
        mean, std = (torch.tensor(value, device=self.device).view(3, 1, 1) for value in (self.clip.mean, self.clip.std))
        rows = [torch.zeros(0, self.clip.embed_dim, device=self.device)]
        with torch.no_grad(), self.precision.autocast():
            for chunk in torch.split(regions, CHUNK) if len(regions) else ():
                images = (chunk.to(self.device).float() / 255 - mean) / std
                rows.append(self.clip.model.encode_image(images_to_device(images, self.device)).float())
        return F.normalize(torch.cat(rows), dim=1)

    def _noun_embeddings(self, caption: str, draws: torch.Generator) -> Tensor:
        """Return the text embeddings [M, E] of some nouns of a caption."""
        chosen = draw_nouns(extract_nouns(caption), draws)
        for word in chosen:
            if word not in self._nouns:
                self._nouns[word] = embed_texts(self.clip, [word])[0].to(self.device)
        none = torch.zeros(0, self.clip.embed_dim, device=self.device)
        return torch.stack([self._nouns[word] for word in chosen]) if chosen else none

    def _synonym_embeddings(self, segments: Segments, draws: torch.Generator) -> Tensor:
        """Return the text embedding [N, E] of a name of each segment, drawn uniformly from its likely names."""
        assert self.synonym_filter is not None
        rows = [torch.zeros(0, self.clip.embed_dim)]
        for region, class_index in zip(_regions_of(segments), segments.classes.tolist(), strict=True):
            likely = self.synonym_filter(region, class_index)
            name = likely[int(torch.randint(len(likely), (), generator=draws))]
            rows.append(self.synonym_filter.name_embeddings[class_index][name : name + 1])
        return torch.cat(rows).to(self.device)


def make_teacher_targets(
    stages: Sequence[TargetRequirements],
    clip: Clip,
    vocabulary: Vocabulary,
    *,
    seed: int,
    world: World,
    precision: Precision,
) -> TeacherTargets | None:
    """Return the targets of a run, or None if its framework requires none.

    Args:
        stages: The targets that the framework requires, in each stage of the run.
        clip: The CLIP of the run, with its own weights.
        vocabulary: Classes of the segments, with names as the framework writes them.
        seed: Seed of the run.
        world: This process.
        precision: Precision of the image encoder.
    """
    needed = [each for each in stages if _needs_teacher(each)]
    if not needed:
        return None
    names = TargetRequirements.__dataclass_fields__
    union = TargetRequirements(**{name: any(getattr(each, name) for each in needed) for name in names})
    return TeacherTargets(clip, union, vocabulary, device=world.device, precision=precision, seed=seed, rank=world.rank)


def warn_of_captions(dataset: Labelled, requirements: TargetRequirements, remedy: str) -> None:
    """Warn if captions are required and the first image has none: the loss on captions learns nothing then.

    Args:
        dataset: The dataset to train on.
        requirements: The targets that the framework requires.
        remedy: Setting without which the loss is left out, such as "model.grounding_weight=0".
    """
    if requirements.captions and not dataset[0].caption:
        logger.warning(
            "%s:%s: its first image has no caption; the loss on captions is 0 for such images, `%s` leaves it out",
            dataset.name,
            dataset.split,
            remedy,
        )


def draw_nouns(words: Sequence[str], draws: torch.Generator) -> list[str]:
    """Draw some words.

    Each word is kept with probability 1 - NOUN_DROP; all are if none would be. If more than MAX_NOUNS are left, that
    many are drawn from them uniformly.
    """
    kept = (torch.rand(len(words), generator=draws) >= NOUN_DROP).nonzero().flatten()
    if not len(kept):
        kept = torch.arange(len(words))
    if len(kept) > MAX_NOUNS:
        kept = kept[torch.randperm(len(kept), generator=draws)[:MAX_NOUNS]].sort().values
    return [words[number] for number in kept.tolist()]


def _needs_teacher(requirements: TargetRequirements) -> bool:
    """Return whether targets are required that the data alone do not give."""
    return requirements.teacher or requirements.captions or requirements.synonyms


def _numerics(device: torch.device, precision: Precision) -> str:
    """Name what the last bits of an embedding depend on, beside the weights: device, threads, precision, torch."""
    cuda = device.type == "cuda"
    place = torch.cuda.get_device_name(device) if cuda else f"{device.type} in {torch.get_num_threads()} threads"
    return f"{place}, {precision.name}, torch {torch.__version__}"


def _regions_of(segments: Segments) -> Tensor:
    if segments.regions is None:
        raise InputError("the segments of the batch have no regions for CLIP; see datasets.segments")
    return segments.regions
