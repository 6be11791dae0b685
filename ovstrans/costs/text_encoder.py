"""What it costs to embed a vocabulary: once, not per image.

Every row of a classifier is one name of a class, in every template; the text encoder reads each prompt at its
full context length, however short it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ovstrans.clip.load import create_clip
from ovstrans.costs.dispatch import count_dispatched
from ovstrans.frameworks.base import Framework


@dataclass(frozen=True)
class TextEncoderFlops:
    """model: open_clip name of the CLIP whose text encoder it is.  rows: R, names of classes.  templates: prompts
    of a name.  per_prompt: MACs."""

    model: str
    vocabulary: str
    rows: int
    templates: int
    per_prompt: int

    @property
    def prompts(self) -> int:
        """Texts to embed."""
        return self.rows * self.templates

    @property
    def macs(self) -> int:
        """Of the whole vocabulary, once."""
        return self.prompts * self.per_prompt

    def as_json(self) -> dict[str, Any]:
        """The entry `text_encoder` of a report's `flops`; it is in none of the sums there."""
        return {
            "unit": "MAC",
            "per": "vocabulary",
            "vocabulary": self.vocabulary,
            "rows": self.rows,
            "templates": self.templates,
            "prompts": self.prompts,
            "per_prompt": self.per_prompt,
            "macs": self.macs,
            "flops": 2 * self.macs,
        }


def count_text_encoder(framework: Framework, model: str) -> TextEncoderFlops:
    """MACs of embedding the vocabulary that a framework was built with. model: open_clip name of its CLIP."""
    vocabulary, rows = framework.text.vocabulary, len(framework.text.owner)
    return TextEncoderFlops(model, vocabulary.name, rows, len(vocabulary.templates), prompt_macs(model))


@lru_cache
def prompt_macs(model: str) -> int:
    """MACs of embedding one prompt with the text encoder of an open_clip model."""
    with torch.device("meta"):
        clip = create_clip(model)
    tokens = torch.zeros(1, clip.context_length, dtype=torch.long, device="meta")
    products, _ = count_dispatched(clip, (1,), lambda _: clip.encode_text(tokens))
    return sum(products.values())
