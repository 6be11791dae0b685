"""DeOP: masks by any proposals, classes by one pass of a frozen CLIP ViT over the whole image.

Han et al. 2023, Open-Vocabulary Semantic Segmentation with Decoupled One-Pass Network (arXiv 2304.01198). Earlier
two-stage methods ran CLIP on a crop of every proposal. Here CLIP sees the image once; its last blocks keep patches
apart (`clip.severance`), and the embedding of a proposal is pooled from the map of patches, at anchors that are learned
(`frameworks.deop_anchors`). Class names stand behind a learned prompt (`clip.prompts`).

Training has three stages, on the base classes: the prompt, on CLIP's embeddings of the true segments; the proposal
network; anchors, positions and the prompt again, on fixed proposals. CLIP is frozen throughout. A mask applies to the
weights of its image encoder all the same.

Shapes: `B` batch, `N` proposals, `K` classes, `H W` image, `h w` grid of patches, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovstrans.clip.load import Clip
from ovstrans.clip.prompts import PromptEncoder, embed_prompted
from ovstrans.clip.severance import encode_patches, sever, severable_blocks
from ovstrans.clip.text import TextClassifier, cosine_scores, embed_vocabulary
from ovstrans.datasets.sample import Sample
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, TargetRequirements, TrainingStage
from ovstrans.frameworks.deeplabv3 import IGNORED, training_targets
from ovstrans.frameworks.deop_anchors import AnchorClassifier, LearnedPositions, ProposalClassifier, pool_masks
from ovstrans.frameworks.deop_crops import encode_crops
from ovstrans.frameworks.deop_losses import pixel_losses
from ovstrans.frameworks.deop_options import ANCHORS, PROMPTS, PROPOSALS, DeOPOptions, check_options, split_steps
from ovstrans.frameworks.deop_proposals import (
    NETWORK,
    ProposalNetwork,
    Proposals,
    find_given,
    given_proposals,
    match_queries,
    proposal_losses,
    resize_given,
)
from ovstrans.frameworks.mask2former_inference import QueryScores
from ovstrans.frameworks.mask2former_losses import Criterion
from ovstrans.frameworks.mask_framework import base_sized
from ovstrans.frameworks.query_inference import QueryInference
from ovstrans.vocabulary.vocabulary import Vocabulary, use_class_names


class DeOP(DeOPOptions, QueryInference):
    """Masks by proposals, classes by anchors on CLIP's map of patches; see `DeOPOptions` for the options."""

    name: ClassVar[str] = "deop"
    templates: ClassVar[str | None] = "bare"
    default_clip: ClassVar[str] = "ViT-mini"
    text_keys: ClassVar[tuple[str, ...]] = ("prompt.vectors",)
    inference_options: ClassVar[frozenset[str]] = QueryInference.inference_options | {"proposals", "two_stream"}

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
        check_options(f"framework {self.name}", self.options, self.embed_dim)
        own = self.options
        sever(self.backbone, own["severed"])
        self.backbone.requires_grad_(False)
        self.proposals: ProposalNetwork | None = None
        if own["proposal_encoder"]:
            sizes = ("queries", "width", "heads", "encoder_layers", "encoder_ffn", "decoder_layers", "decoder_ffn")
            self.proposals = ProposalNetwork(own["proposal_encoder"], **{name: own[name] for name in sizes})
        self.criterion = Criterion(points=own["points"], class_cost=0.0)
        self.anchors: AnchorClassifier | None = None
        self.positions: LearnedPositions | None = None
        if own["anchors"]:
            self.anchors = AnchorClassifier(
                self.embed_dim,
                queries=own["queries"],
                layers=own["anchor_layers"],
                heads=own["anchor_heads"],
                ffn=own["anchor_ffn"],
                dropout=own["anchor_dropout"],
            )
            blocks = len(severable_blocks(self.backbone))
            if max(own["position_layers"], default=0) >= blocks:
                raise InputError(
                    f"framework {self.name}: option position_layers = {own['position_layers']}; the image encoder has "
                    f"{blocks} blocks, 0 to {blocks - 1}"
                )
            width = int(cast(Any, self.backbone).conv1.out_channels)
            self.positions = LearnedPositions(own["position_layers"], own["position_grid"], width)
        self.classifier = ProposalClassifier(self.embed_dim, own["clip_scale"], non_object=own["anchors"])
        self.prompt: nn.Module | None = None
        if own["prompt"] == "learned":
            self.prompt = nn.Module()
            self.prompt.vectors = nn.Parameter(0.02 * torch.randn(own["prompt_length"], own["prompt_width"]))
        self._prompts: list[PromptEncoder] = []  # of the training vocabulary, during training; no part of the state
        self.stage = ANCHORS if own["anchors"] else PROPOSALS
        self.train(self.training)

    @classmethod
    def format_class_names(cls, vocabulary: Vocabulary) -> Vocabulary:
        """Use the dataset authors' own names as they are, one for each class (released code)."""
        return use_class_names(vocabulary, "plain")

    @classmethod
    def embed_vocabulary(cls, clip: Clip, vocabulary: Vocabulary, state: Mapping[str, Tensor]) -> TextClassifier:
        """Embed class names behind the learned prompt if there is one, else in the vocabulary's templates."""
        if cls.text_keys[0] not in state:
            return embed_vocabulary(clip, vocabulary)
        return embed_prompted(clip, vocabulary, state[cls.text_keys[0]])

    def train(self, mode: bool = True) -> DeOP:
        """Set the mode of what the stage trains; CLIP, and proposals while anchors are trained, stay in eval mode."""
        super().train(mode)
        self.backbone.eval()
        if self.proposals is not None:
            self.proposals.train(mode and self.stage == PROPOSALS)
        return self

    @property
    def severed_blocks(self) -> tuple[int, ...]:
        """The blocks of the option `severed`, from 0; none if crops go through the whole of CLIP."""
        return () if self.options["two_stream"] else cast(Any, self.backbone).severed

    @property
    def matching(self) -> tuple[int, int, int] | None:
        """Predictions, queries and points of the proposal network's matching; see `Framework.matching`."""
        if self.proposals is None:
            return None
        return int(self.options["decoder_layers"]) + 1, self.options["queries"], self.options["points"]

    def components(self) -> dict[str, nn.Module]:
        """Return the backbone (as "trunk"), the classifier, and what there is of proposals, anchors and prompt."""
        parts: dict[str, nn.Module | None] = {"trunk": self.backbone}
        if self.proposals is not None:
            head = self.proposals.head
            parts |= {"proposal_encoder": self.proposals.encoder, "pixel_decoder": head.pixel_decoder}
            parts |= {"transformer_decoder": head.transformer}
        parts |= {"positions": self.positions, "anchors": self.anchors, "classifier": self.classifier}
        parts |= {"prompt": self.prompt}
        return {name: part for name, part in parts.items() if part is not None}

    # Training.

    def training_stages(self, steps: int) -> list[TrainingStage]:
        """Return the stages that have something to train: prompt, proposals, anchors."""
        requirements = {PROMPTS: TargetRequirements(segments=True, teacher=True)}
        rates = {PROMPTS: self.options["prompt_lr"], PROPOSALS: self.options["proposal_lr"]}
        names = sum(len(self._vocabulary.classes[index]) for index in self._vocabulary.base)
        return [
            TrainingStage(
                name,
                count,
                rates.get(name),
                requirements.get(name, TargetRequirements()),
                matches=name == PROPOSALS,
                prompts=names if self.prompt is not None and name != PROPOSALS else 0,
            )
            for name, count in split_steps(self.options, steps).items()
        ]

    def start_training(self, clip: Clip, *, resumed: bool) -> None:
        """Load the weights of the proposal network's encoder, and take a copy of the text encoder for the prompt."""
        if self.proposals is not None and not resumed:
            self.proposals.load_pretrained(self.options["proposal_encoder"], self.options["proposal_pretrained"])
        if self.prompt is not None:
            names = [name for synonyms in self._vocabulary.classes for name in synonyms]
            prompts = PromptEncoder(clip, names, self.options["prompt_length"], self.pixel_mean.device)
            if prompts.width != self.options["prompt_width"]:
                raise InputError(
                    f"framework {self.name}: option prompt_width = {self.options['prompt_width']}; the text encoder of "
                    f"{clip.name} has a width of {prompts.width}, set that"
                )
            self._prompts = [prompts]

    def finish_training(self) -> None:
        """Embed the class names behind the prompt as it is now."""
        if self._prompts:
            with torch.no_grad():
                self.text_embeddings = self._prompts[0](self._prompt_vectors()).detach()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the losses of the stage.

        Args:
            batch: Images with labels; to train the prompt also segments and the teacher's view of them.

        Returns:
            "prompt" (cross entropy); or "mask" (binary cross entropy) and "dice", summed over the predictions of the
            decoder; or "focal" and "dice". All are weighted.

        Raises:
            InputError: The batch lacks what the losses need.
        """
        if self.stage == PROMPTS:
            return {"prompt": self._prompt_loss(batch)}
        if batch.labels is None:
            raise InputError(f"framework {self.name}: training needs labels, the batch has none")
        own = self.options
        targets, _ = training_targets(batch.labels, batch.ignore, self._vocabulary)
        height, width = self.padded_size(batch.images)
        padding = (0, width - targets.shape[-1], 0, height - targets.shape[-2])
        targets = F.pad(targets, padding, value=IGNORED)
        if self.stage == PROPOSALS:
            assert self.proposals is not None
            output = self.proposals(self.prepare(batch.images))
            mask, dice = proposal_losses(output, targets, IGNORED, self.criterion)
            return {"mask": own["mask_weight"] * mask, "dice": own["dice_weight"] * dice}
        proposals = self._training_proposals(batch, targets)
        logits = self.class_logits(self.prepare(batch.images), proposals, self._training_text())
        focal, dice = pixel_losses(logits, proposals.masks, targets, IGNORED)
        return {"focal": own["anchor_focal_weight"] * focal, "dice": own["anchor_dice_weight"] * dice}

    def training_outputs(self, images: Tensor) -> list[Tensor]:
        """Compute what the losses of the stage start from; of the prompt that is the text encoder's, counted apart."""
        if self.stage == PROMPTS:
            return [self._prompt_vectors() * 1]
        prepared = self.prepare(images)
        if self.stage == PROPOSALS:
            assert self.proposals is not None
            return list(self.proposals(prepared).masks)
        if self.proposals is None:  # trained on the true masks, of full size
            masks = prepared.new_empty(len(prepared), self.options["queries"], *prepared.shape[-2:])
            return [self.class_logits(prepared, Proposals(masks, given=True), base_sized(self.text))]
        return [self.class_logits(prepared, self._own_proposals(prepared), base_sized(self.text))]

    # Inference.

    def given_masks(
        self, name: str, size: tuple[int, int], sample: Sample | None = None, ignore: int = 255
    ) -> Tensor | None:
        """Return the masks that the option `proposals` names, from the truth or a folder; None for the network's."""
        if self.options["proposals"] == NETWORK:
            return None
        label, segments = (None, None) if sample is None else (sample.label, sample.segment_map)
        return find_given(self.options["proposals"], name, size, label, segments, ignore)

    def predict_masks(self, images: Tensor, text: TextClassifier | None = None) -> tuple[Tensor, Tensor]:
        """Predict the classes and masks of the network's proposals; see `QueryInference`."""
        prepared = self.prepare(images)
        proposals = self._own_proposals(prepared)
        return self._probabilities(prepared, proposals, text), proposals.masks

    def scores(
        self, images: Tensor, text: TextClassifier | None = None, *, masks: Sequence[Tensor] | None = None
    ) -> Sequence[QueryScores]:
        """Compute class scores; see `Framework.scores`.

        Args:
            images: [B, 3, H, W], RGB in [0, 1].
            text: The classes to score; None for the training vocabulary.
            masks: The proposals of each image, bool [N, *, *] of any size over the same area; None for the network's.
        """
        if masks is None:
            return super().scores(images, text)
        size, padded = (int(images.shape[-2]), int(images.shape[-1])), self.padded_size(images)
        result = []
        for image, own in zip(images, resize_given([each.to(images.device) for each in masks], size), strict=True):
            if not len(own):  # an image without a mask is one proposal
                own = own.new_ones(1, *size)
            prepared, proposals = self.prepare(image[None]), given_proposals(own, padded)
            result.append(
                QueryScores(self._probabilities(prepared, proposals, text)[0], proposals.masks[0], size, padded)
            )
        return result

    def class_logits(self, prepared: Tensor, proposals: Proposals, text: TextClassifier) -> Tensor:
        """Classify proposals by one pass of CLIP.

        Args:
            prepared: Normalised, padded images [B, 3, H, W].
            proposals: Their proposals.
            text: The K classes to score.

        Returns:
            [B, N, K + 1], the non-object last; -inf for it without anchors.
        """
        logits: Tensor = self.classifier(self.embed(prepared, proposals), text)
        return logits

    def embed(self, prepared: Tensor, proposals: Proposals) -> Tensor:
        """Compute the unit embedding [B, N, E] of each proposal; see `class_logits`."""
        features = self.dense_features(prepared, proposals)
        grid = (int(features.shape[-2]), int(features.shape[-1]))
        inside = proposals.inside(grid)
        if self.anchors is None:
            return pool_masks(features, inside)
        embedding: Tensor = self.anchors(features, inside, self._chosen_queries(prepared, proposals, inside, grid))
        return embedding

    def dense_features(self, prepared: Tensor, proposals: Proposals) -> Tensor:
        """Compute CLIP's unit embedding [B, E, h, w] of every patch, with severed last blocks; see `class_logits`."""
        return F.normalize(self.raw_features(prepared, proposals).float(), dim=1)

    def raw_features(self, prepared: Tensor, proposals: Proposals) -> Tensor:
        """Compute CLIP's embedding of every patch before it is normalised; see `dense_features`."""
        side = int(cast(Any, self.backbone).patch_size[0])
        height, width = (-(-int(length) // side) for length in prepared.shape[-2:])
        if (height * side, width * side) != tuple(prepared.shape[-2:]):  # a patch of 14 pixels
            prepared = F.interpolate(prepared, size=(height * side, width * side), mode="bilinear")
        return encode_patches(
            self.backbone,
            prepared,
            mode=self.options["severance"],
            masks=proposals.grid_logits((height, width)),
            gate=self.options["gate"],
            positions=None if self.positions is None else self.positions(),
        )

    def _probabilities(self, prepared: Tensor, proposals: Proposals, text: TextClassifier | None) -> Tensor:
        """Compute class probabilities [B, N, K + 1] by one pass of CLIP, or by a pass for each proposal."""
        text = self.text if text is None else text.to(prepared.device)
        if not self.options["two_stream"]:
            return self.class_logits(prepared, proposals, text).softmax(-1)
        side = int(cast(Any, self.backbone).image_size[0])
        crops = encode_crops(self.backbone, prepared, proposals.masks, side)
        scores = cosine_scores(crops.transpose(1, 2), text, self.options["clip_scale"])
        return F.pad(scores.transpose(1, 2).softmax(-1), (0, 1))

    def _own_proposals(self, prepared: Tensor) -> Proposals:
        if self.proposals is None:
            raise InputError(
                f"framework {self.name}: has no network that proposes masks (proposal_encoder is empty); give some: "
                "option proposals"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage == PROPOSALS):
            return Proposals(self.proposals(prepared).masks[-1])

    def _training_proposals(self, batch: Batch, targets: Tensor) -> Proposals:
        """Return the proposals that anchors are trained on: the network's, or without one the true classes' masks."""
        if self.proposals is not None:
            return self._own_proposals(self.prepare(batch.images))
        count = self.options["queries"]
        masks = targets.new_zeros(len(targets), count, *targets.shape[1:], dtype=torch.bool)
        for row, target in enumerate(targets):
            values = torch.unique(target)
            own = target[None] == values[values != IGNORED][:count, None, None]
            masks[row, : len(own)] = own
        proposals = torch.cat([given_proposals(each, (targets.shape[1], targets.shape[2])).masks for each in masks])
        return Proposals(proposals, given=True)

    def _chosen_queries(
        self, prepared: Tensor, proposals: Proposals, inside: Tensor, grid: tuple[int, int]
    ) -> Tensor | None:
        """Return which query's anchors each given mask takes: those of the network's proposal that is most like it."""
        if not proposals.given or (self.training and self.proposals is None):
            return None
        if self.proposals is None:
            queries: int = self.options["queries"]
            return torch.arange(inside.shape[1], device=inside.device)[None] % queries
        return match_queries(inside, self._own_proposals(prepared).inside(grid))

    def _prompt_vectors(self) -> Tensor:
        assert self.prompt is not None
        return cast(Tensor, self.prompt.vectors)

    def _training_text(self) -> TextClassifier:
        """Return the classifier of the base classes, behind the prompt as it is now."""
        if self.prompt is None:
            return self.base_text
        if not self._prompts:
            raise InputError(f"framework {self.name}: a learned prompt is trained with `start_training` only")
        base = self.base_text
        every = torch.arange(len(self.text_owner))
        kept = [int(row) for row in every if int(self.text_owner[row]) in self._vocabulary.base]
        return TextClassifier(self._prompts[0](self._prompt_vectors(), kept), base.owner, base.vocabulary)

    def _prompt_loss(self, batch: Batch) -> Tensor:
        """Compute the cross entropy of CLIP's embeddings of the true segments against the base classes."""
        if batch.teacher is None or batch.segments is None:
            raise InputError(f"framework {self.name}: the prompt is trained on a teacher's view of segments")
        text = self._training_text()
        _, columns = training_targets(torch.zeros(0, dtype=torch.long), batch.ignore, self._vocabulary)
        rows = torch.cat(batch.teacher)
        classes = torch.cat([each.classes for each in batch.segments])
        labels = torch.searchsorted(columns.to(classes.device), classes)
        if not len(rows):
            return text.embeddings.sum() * 0
        logits = cosine_scores(rows[:, :, None], text, self.options["clip_scale"])[:, :, 0]
        return F.cross_entropy(logits, labels)
