"""Synonyms of a class name that CLIP finds likely for a segment (Han et al. 2023, GKC: text diversification).

CLIP compares the segment's region with a prompt around each name of its class. Names with a high probability in the
softmax over them fit what the region shows: "animal" for a dog behind a fence, say. GKC's code compares the plain
bounding box by ViT-B/32; here the CLIP of the run compares the segment on grey, as the teacher sees it.

The likely names of a segment never change, so they are found once and kept: in memory, and in a cache on disk for later
runs. The key is the content of the region, wherever it comes from. Regions are encoded one at a time: in a batch with
others the last bits could differ, hence a name near the limit, and a run would depend on what was in the cache.

A file of the cache holds `keys`, uint8 [n, 16], a hash of a region and the index of its class, and `likely`, uint8
[n, w], one bit a name, packed by `numpy.packbits`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ovstrans import files
from ovstrans.clip.load import Clip
from ovstrans.clip.text import cache_folder, embed_vocabulary
from ovstrans.clip.weights import weights_sha256
from ovstrans.errors import InputError
from ovstrans.vocabulary.synonyms import find_synonyms
from ovstrans.vocabulary.vocabulary import Vocabulary

LIKELY = 0.1
"""Least probability of a synonym that may be chosen (`thresRand` in GKC's code)."""
PROMPT = "a photo of {}"
"""Prompt in which synonyms are compared with a region (GKC's code)."""
_FORMAT = "ovstrans.likely-names/1"
_KEY = 16
_FIRST_SAVE = 4096
"""Number of new segments at which the cache is first saved; then whenever the number has doubled."""


class SynonymFilter:
    """Finds the likely names of segments, and keeps them in a cache.

    Args:
        clip: The CLIP that compares, with its text encoder.
        vocabulary: The classes of the segments.
        encode_regions: Returns CLIP's unit image embeddings [N, E] of regions uint8 [N, 3, S, S].
        computed: Device and precision of `encode_regions` in words; a cache is used under the same ones only.

    Attributes:
        names: Per class, its names: see `names_of_class`.
        name_embeddings: Per class, the text embeddings [n, E] of its names without a prompt.

    Raises:
        InputError: The CLIP has no text encoder.
    """

    def __init__(
        self, clip: Clip, vocabulary: Vocabulary, encode_regions: Callable[[Tensor], Tensor], computed: str
    ) -> None:
        self.names = tuple(names_of_class(each) for each in vocabulary.classes)
        counts = [len(each) for each in self.names]
        self.name_embeddings, self._prompts = (
            torch.split(
                embed_vocabulary(clip, Vocabulary("synonyms", self.names, templates=(template,))).embeddings, counts
            )
            for template in ("{}", PROMPT)
        )
        self._encode_regions, self._scale = encode_regions, clip.model.logit_scale.exp().item()
        self._width = -(-max(counts) // 8)
        weights = weights_sha256(clip.model.state_dict())
        words = [clip.name, weights, clip.mean, clip.std, self.names, PROMPT, LIKELY, computed]
        self._folder = cache_folder() / "likely-names" / hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]
        self._file = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.safetensors"
        self._kept: dict[bytes, bytes] = {}
        for path in sorted(self._folder.glob("[!.]*.safetensors")):
            self._kept |= _read(path, self._width)
        self._new: dict[bytes, bytes] = {}
        self._saved = 0

    def __call__(self, region: Tensor, class_index: int) -> list[int]:
        """Return the likely names of a segment, as indices into the names of its class.

        Args:
            region: What CLIP sees of the segment, uint8 [3, S, S] (see `datasets.segments`).
            class_index: Index of its class.

        Returns:
            Indices into `names[class_index]`: those with a probability above LIKELY, or the likeliest where none has.
        """
        if len(self.names[class_index]) == 1:
            return [0]
        content = region.cpu().numpy().tobytes()
        key = hashlib.blake2b(content, digest_size=_KEY, salt=class_index.to_bytes(8, "little")).digest()
        if key not in self._kept:
            found = likely_indices(
                self._scale * (self._prompts[class_index] @ self._encode_regions(region[None])[0].cpu())
            )
            flags = np.zeros(8 * self._width, dtype=bool)
            flags[found] = True
            self._kept[key] = self._new[key] = np.packbits(flags).tobytes()
            if len(self._new) >= max(_FIRST_SAVE, 2 * self._saved):
                self.save()
        flags = np.unpackbits(np.frombuffer(self._kept[key], dtype=np.uint8))
        return [int(index) for index in np.flatnonzero(flags)]

    def save(self) -> None:
        """Write what was found to the cache. Nothing happens where the cache folder cannot be written."""
        if len(self._new) == self._saved:
            return
        keys, likely = (
            torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8).view(len(self._new), -1)
            for parts in (self._new.keys(), self._new.values())
        )
        self._saved = len(self._new)
        try:
            files.write_tensors(self._file, {"keys": keys, "likely": likely}, {"format": _FORMAT})
        except InputError:
            return


def names_of_class(own: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of a class, each once: its own ones, then WordNet's synonyms of the first."""
    return tuple(dict.fromkeys((*own, *find_synonyms(own[0]))))


def likely_indices(logits: Tensor) -> list[int]:
    """Return the indices above LIKELY in the softmax of logits [n], or the largest one where none is."""
    found = logits.softmax(0)
    likely: list[int] = (found > LIKELY).nonzero().flatten().tolist()
    return likely or [int(found.argmax())]


def _read(path: Path, width: int) -> dict[bytes, bytes]:
    """Read a file of the cache; an empty dict if it is damaged or holds something else."""
    try:
        tensors = files.read_tensors(path)[0]
    except InputError:
        return {}
    keys, likely = tensors.get("keys"), tensors.get("likely")
    if keys is None or likely is None or keys.dtype != torch.uint8 or likely.dtype != torch.uint8:
        return {}
    if keys.shape[1:] != (_KEY,) or likely.shape != (len(keys), width) or not likely.any(1).all():
        return {}  # something else, or a segment without a likely name
    return {bytes(key): bytes(value) for key, value in zip(keys.numpy(), likely.numpy(), strict=True)}
