"""Guides: what a framework learns from beyond its labels, made by a frozen CLIP as training goes.

A targets fills the fields of a batch that `TargetRequirements` names: the teacher's view of each segment, the nouns of
captions, synonyms of class names (Han et al. 2023, GKC, arXiv 2303.09181). It belongs to the run and
not to the framework, so nothing of it gets into a checkpoint.

What it makes of a step follows from (seed, step, rank) and the step's batch alone: its draws have a
generator of their own, the teacher's view is embedded a batch at a time and never kept (in a batch of
other make-up the last bits would differ), and what is kept, nouns and the likely names of segments, is
found one by one.

Shapes: `N` segments of an image, `M` nouns of a caption, `S` side of a region, `E` embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans import console
from ovstrans.clip.load import Clip, load_clip
from ovstrans.clip.text import embed_texts
from ovstrans.datasets.segments import Segments
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, TargetRequirements
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training.batches import Labelled
from ovstrans.training.distributed import World
from ovstrans.training.precision import Precision, images_to_device, to_device
from ovstrans.training.state import derive_seed
from ovstrans.training.synonym_filter import SynonymFilter
from ovstrans.vocabulary.nouns import extract_nouns
from ovstrans.vocabulary.vocabulary import Vocabulary

NOUN_DROP = 0.25
"""Chance that a caption's noun is left out (GKC's code)."""
MAX_NOUNS = 5
"""Most nouns of a caption (GKC's code)."""
CHUNK = 64
"""Regions that the image encoder sees at once."""


class TeacherTargets:
    """Fills batches, on the device, by a copy of a CLIP as it is now: make it before weights change.

    requirements: what to fill in.  vocabulary: that the segments' classes are indices of, its names as the
    framework words them.  seed: of the run.  rank: of this process.  Raises InputError where the CLIP
    has no text encoder and one is needed.
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
        self.requirements, self.device, self.precision, self.seed, self.rank = (
            requirements,
            device,
            precision,
            seed,
            rank,
        )
        self.clip = replace(clip, model=copy.deepcopy(clip.model).eval().requires_grad_(False))
        to_device(self.clip.model, device)
        self._nouns: dict[str, Tensor] = {}
        if requirements.captions and not clip.has_text:
            raise InputError(f"{clip.pretrained}: holds the image encoder only, but captions need the text encoder")
        computed = _computed(device, precision)
        self.names = (
            SynonymFilter(self.clip, vocabulary, self.encode_regions, computed) if requirements.synonyms else None
        )

    def attach(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        """The batches of step `start` (counted from 0) and on, filled in."""
        try:
            for number, batch in enumerate(batches, start):
                yield self.add(batch, number)
        finally:
            if self.names is not None:
                self.names.save()

    def add(self, batch: Batch, step: int) -> Batch:
        """The batch with what `requirements` names.

        batch: on the device; its segments with their regions where teacher or synonyms are wanted.
        """
        draws = torch.Generator().manual_seed(derive_seed(self.seed, "guide", step, self.rank))
        if self.requirements.captions:
            batch = replace(batch, nouns=tuple(self._words(caption, draws) for caption in batch.captions))
        if self.requirements.synonyms:
            batch = replace(batch, synonyms=tuple(self._synonyms(each, draws) for each in batch.segments or ()))
        if self.requirements.teacher:
            regions = [_regions_of(segments) for segments in batch.segments or ()]
            batch = replace(
                batch, teacher=self.encode_regions(torch.cat(regions)).split([len(each) for each in regions])
            )
        return batch

    def encode_regions(self, regions: Tensor) -> Tensor:
        """CLIP's image embeddings, unit rows [N, E], of regions uint8 [N, 3, S, S]."""
        mean, std = (torch.tensor(value, device=self.device).view(3, 1, 1) for value in (self.clip.mean, self.clip.std))
        rows = [torch.zeros(0, self.clip.embed_dim, device=self.device)]
        with torch.no_grad(), self.precision.autocast():
            for chunk in regions.split(CHUNK) if len(regions) else ():
                images = (chunk.to(self.device).float() / 255 - mean) / std
                rows.append(self.clip.model.encode_image(images_to_device(images, self.device)).float())
        return F.normalize(torch.cat(rows), dim=1)

    def _words(self, caption: str, draws: torch.Generator) -> Tensor:
        """Embeddings [M, E] of some of a caption's nouns."""
        chosen = choose_nouns(extract_nouns(caption), draws)
        for word in chosen:
            if word not in self._nouns:
                self._nouns[word] = embed_texts(self.clip, [word])[0].to(self.device)
        none = torch.zeros(0, self.clip.embed_dim, device=self.device)
        return torch.stack([self._nouns[word] for word in chosen]) if chosen else none

    def _synonyms(self, segments: Segments, draws: torch.Generator) -> Tensor:
        """The embedding [N, E] of a name for each segment of an image: one of the likely ones, evenly."""
        assert self.names is not None
        rows = [torch.zeros(0, self.clip.embed_dim)]
        for region, kind in zip(_regions_of(segments), segments.classes.tolist(), strict=True):
            likely = self.names(region, kind)
            rows.append(self.names.bare[kind][likely[int(torch.randint(len(likely), (), generator=draws))]][None])
        return torch.cat(rows).to(self.device)


def make_teacher_targets(
    settings: FinetuneRecipe,
    requirements: TargetRequirements,
    clip: Clip,
    vocabulary: Vocabulary,
    world: World,
    precision: Precision,
) -> TeacherTargets | None:
    """The targets of a run, around CLIP as it was trained; None where `requirements` names nothing that one gives."""
    if not (requirements.teacher or requirements.captions or requirements.synonyms):
        return None
    if settings.run.init == "pruned":  # pruned weights have taken the place of CLIP's own
        clip = load_clip(settings.model.clip, settings.model.pretrained or None)
    rank, seed = world.rank, settings.run.seed
    return TeacherTargets(
        clip, requirements, vocabulary, device=world.device, precision=precision, seed=seed, rank=rank
    )


def warn_of_captions(dataset: Labelled, requirements: TargetRequirements, without: str) -> None:
    """Say that a loss on captions has nothing to learn from, where the first image has none.

    without: the setting that leaves that loss out.
    """
    if requirements.captions and not dataset[0].caption:
        console.warn(
            f"{dataset.name}:{dataset.split}: its first image has no caption; the loss on captions is 0 for such "
            f"images, --set {without} leaves it out"
        )


def choose_nouns(words: Sequence[str], draws: torch.Generator) -> list[str]:
    """Each word kept with 1 - NOUN_DROP, all of them if none would be; at most MAX_NOUNS, drawn evenly."""
    kept = (torch.rand(len(words), generator=draws) >= NOUN_DROP).nonzero().flatten()
    if not len(kept):
        kept = torch.arange(len(words))
    if len(kept) > MAX_NOUNS:
        kept = kept[torch.randperm(len(kept), generator=draws)[:MAX_NOUNS]].sort().values
    return [words[number] for number in kept.tolist()]


def _computed(device: torch.device, precision: Precision) -> str:
    """Where and in what CLIP looks: what the last bits of an embedding follow from, beside its weights."""
    cuda = device.type == "cuda"
    place = torch.cuda.get_device_name(device) if cuda else f"{device.type} in {torch.get_num_threads()} threads"
    return f"{place}, {precision.name}, torch {torch.__version__}"


def _regions_of(segments: Segments) -> Tensor:
    if segments.regions is None:
        raise InputError("the batch's segments have no regions for CLIP to look at; see data.segments")
    return segments.regions
