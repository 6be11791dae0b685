"""Which of the names of its class CLIP finds likely for a segment (Han et al. 2023, GKC: text diversification).

CLIP compares a segment's region with a prompt around each name; the softmax over the names of the
class says which of them fit what is to be seen ("animal" of a dog behind a fence). As published ViT-B/32
looks at the plain box; here the run's own CLIP does, at the segment on grey that its teacher sees too.

What is likely never changes, so it is found once a segment and kept: in memory, and on disk for later
runs, by what a region shows and not by where it comes from. Regions are therefore looked at one by one: in a
batch of other make-up the last bits, and with them a name at the edge, would differ, and a run would
depend on what had been kept before it.

A file of the cache: `keys` uint8 [n, 16], a hash of a region and its class's number; `likely` uint8
[n, w], a bit a name, packed by `numpy.packbits`.
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
"""CLIP's probability from which on a synonym may be chosen (GKC's code, its `thresRand`)."""
PROMPT = "a photo of {}"
"""What synonyms are judged in (GKC's code)."""
_FORMAT = "ovstrans.likely-names/1"
_KEY = 16
_FIRST_SAVE = 4096
"""New segments after which they are first saved; then whenever there are twice as many."""


class SynonymFilter:
    """Finds, and keeps, the likely names of segments.

    clip: the CLIP that looks, with its text encoder.  vocabulary: of the segments' classes.  see: its unit
    image embeddings [N, E] of regions uint8 [N, 3, S, S].  computed: where and in what `see` computes,
    in words; what is kept belongs to it.  Raises InputError where the CLIP has no text encoder.
    """

    def __init__(self, clip: Clip, vocabulary: Vocabulary, see: Callable[[Tensor], Tensor], computed: str) -> None:
        self.names = tuple(names_of(each) for each in vocabulary.classes)
        counts = [len(each) for each in self.names]
        self.bare, self._prompts = (
            embed_vocabulary(clip, Vocabulary("synonyms", self.names, templates=(template,))).embeddings.split(counts)
            for template in ("{}", PROMPT)
        )
        self._encode_regions, self._scale = see, clip.model.logit_scale.exp().item()
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

    def __call__(self, region: Tensor, kind: int) -> list[int]:
        """Which of `names[kind]` have a probability above `LIKELY`, or the likeliest where none has.

        region: uint8 [3, S, S], what CLIP sees of the segment (see `datasets.segments`).  kind: its class.
        """
        if len(self.names[kind]) == 1:
            return [0]
        shown = region.cpu().numpy().tobytes()
        key = hashlib.blake2b(shown, digest_size=_KEY, salt=kind.to_bytes(8, "little")).digest()
        if key not in self._kept:
            found = likely_of(self._scale * (self._prompts[kind] @ self._encode_regions(region[None])[0].cpu()))
            flags = np.zeros(8 * self._width, dtype=bool)
            flags[found] = True
            self._kept[key] = self._new[key] = np.packbits(flags).tobytes()
            if len(self._new) >= max(_FIRST_SAVE, 2 * self._saved):
                self.save()
        return np.flatnonzero(np.unpackbits(np.frombuffer(self._kept[key], dtype=np.uint8))).tolist()

    def save(self) -> None:
        """Leave what was found for later runs; without a word where the cache folder takes nothing."""
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


def names_of(own: tuple[str, ...]) -> tuple[str, ...]:
    """The names a class may go by: its own, then WordNet's synonyms of the first, each once."""
    return tuple(dict.fromkeys((*own, *find_synonyms(own[0]))))


def likely_of(logits: Tensor) -> list[int]:
    """The names above `LIKELY` in the softmax of logits [n], or the likeliest where none is."""
    found = logits.softmax(0)
    return (found > LIKELY).nonzero().flatten().tolist() or [int(found.argmax())]


def _read(path: Path, width: int) -> dict[bytes, bytes]:
    try:
        tensors = files.read_tensors(path)[0]
    except InputError:
        return {}  # damaged: found again
    keys, likely = tensors.get("keys"), tensors.get("likely")
    if keys is None or likely is None or keys.dtype != torch.uint8 or likely.dtype != torch.uint8:
        return {}
    if keys.shape[1:] != (_KEY,) or likely.shape != (len(keys), width) or not likely.any(1).all():
        return {}  # another thing's, or with a segment of which no name is likely
    return {bytes(key): bytes(value) for key, value in zip(keys.numpy(), likely.numpy(), strict=True)}
