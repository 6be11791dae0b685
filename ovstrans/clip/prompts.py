"""Text embeddings with a learned prompt: vectors in front of each class name, in place of words.

Zhou et al. 2022 (CoOp, arXiv 2109.01134), sec. 3.2, in the layout that DeOP (arXiv 2304.01198) released: the same
vectors for all classes, before the name, and a full stop after it:

    start of text, P vectors, tokens of the name, ".", end of text, padding

Shapes: `R` names, `P` vectors, `T` context length of the text encoder, `D` its width, `E` embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.load import Clip
from ovstrans.clip.text import TextClassifier
from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import Vocabulary

_CHUNK = 128
"""Names that are embedded at once when no gradient is needed."""


class PromptEncoder:
    """A frozen text encoder that embeds names behind a learned prompt.

    It is no module: a framework that holds one does not store the text encoder in its checkpoint.

    Args:
        clip: The CLIP whose text encoder is used; it is copied.
        names: The R names.
        length: P, the number of vectors.
        device: Where to compute.

    Raises:
        InputError: The CLIP came without its text encoder, or a name is too long for its context.
    """

    def __init__(self, clip: Clip, names: Sequence[str], length: int, device: torch.device | str = "cpu") -> None:
        if not clip.has_text:
            raise InputError(
                f"{clip.pretrained}: holds the image encoder only, but learned prompts need the text encoder; give the "
                "weights of the whole CLIP as `pretrained`"
            )
        self.names = tuple(names)
        self.length = length
        model = clip.model
        self._text: Any = _TextEncoder(model).to(device)
        context = int(model.context_length)
        with torch.no_grad():
            start, _, stop, end, padding = _token_rows(model, clip.tokenizer(["X."])[0])[:5].to(device)
            rows, ends = [], []
            for name in self.names:
                tokens = clip.tokenizer([name])[0]
                size = int(tokens.argmax()) - 1  # the end of text has the largest number
                if size + length + 3 > context:
                    raise InputError(
                        f"class name {name!r}: has {size} tokens; with {length} prompt vectors and 3 more that is "
                        f"beyond the text encoder's context of {context}; shorten the name, or learn fewer vectors"
                    )
                own = _token_rows(model, tokens)[1 : 1 + size].to(device)
                gap = start.new_zeros(length, len(start))
                used = torch.cat([start[None], gap, own, stop[None], end[None]])
                rows.append(torch.cat([used, padding.expand(context - len(used), -1)]))
                ends.append(len(used) - 1)
        self._rows = torch.stack(rows) if rows else torch.zeros(0, context, len(start), device=device)
        self._ends = torch.tensor(ends, device=device)

    @property
    def width(self) -> int:
        """D, the width of the text encoder, which the vectors must have."""
        return int(self._rows.shape[-1])

    def __call__(self, vectors: Tensor, names: Sequence[int] | None = None) -> Tensor:
        """Embed names behind the prompt; the gradient flows into the vectors.

        Args:
            vectors: The prompt [P, D].
            names: Which of the names, by index; None for all.

        Returns:
            Unit rows [R, E].
        """
        rows, ends = self._rows, self._ends
        if names is not None:
            chosen = torch.tensor(names, dtype=torch.long, device=rows.device)
            rows, ends = rows[chosen], ends[chosen]
        count = len(rows)
        step = count if torch.is_grad_enabled() and vectors.requires_grad else _CHUNK
        parts = []
        for first in range(0, count, max(step, 1)):
            part = rows[first : first + step]
            prompt = vectors.to(part).expand(len(part), -1, -1)
            tokens = torch.cat([part[:, :1], prompt, part[:, 1 + self.length :]], dim=1)
            parts.append(self._text(tokens, ends[first : first + step]))
        return F.normalize(torch.cat(parts).float(), dim=-1)


def embed_prompted(clip: Clip, vocabulary: Vocabulary, vectors: Tensor) -> TextClassifier:
    """Embed the class names of a vocabulary behind a learned prompt; its templates are not used.

    Args:
        clip: The CLIP whose text encoder is used.
        vocabulary: Class names and synonyms.
        vectors: The prompt [P, D].

    Raises:
        InputError: As `PromptEncoder` does.
    """
    names = [name for synonyms in vocabulary.classes for name in synonyms]
    owner = torch.tensor([number for number, synonyms in enumerate(vocabulary.classes) for _ in synonyms])
    device = next(clip.model.parameters()).device
    encoder = PromptEncoder(clip, names, len(vectors), device)
    with torch.no_grad():
        return TextClassifier(encoder(vectors).cpu(), owner, vocabulary)


class _TextEncoder(torch.nn.Module):
    """A frozen copy of the part of open_clip's text encoder that follows the token embedding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.transformer = copy.deepcopy(model.transformer)
        self.ln_final = copy.deepcopy(model.ln_final)
        self.positions = torch.nn.Parameter(model.positional_embedding.detach().clone())
        self.projection = torch.nn.Parameter(model.text_projection.detach().clone())
        self.register_buffer("attn_mask", None if model.attn_mask is None else model.attn_mask.detach().clone())
        self.eval().requires_grad_(False)

    def forward(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """Embed texts from token embeddings [R, T, D] and the place [R] of each end of text: [R, E]."""
        features = self.transformer(tokens + self.positions, attn_mask=self.attn_mask)
        last: Tensor = self.ln_final(features)[torch.arange(len(ends), device=ends.device), ends]
        return last @ self.projection


def _token_rows(model: Any, tokens: Tensor) -> Tensor:
    """Return the embeddings [T, D] of tokens [T], without positions."""
    embedding = model.token_embedding
    rows: Tensor = embedding(tokens.to(embedding.weight.device)).detach().float()
    return rows
