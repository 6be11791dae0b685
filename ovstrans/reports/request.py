"""What to count, in words: a name and the options beside it, as typed on the command line or kept in a lock."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ovstrans.costs.target import Target, load_target
from ovstrans.errors import InputError


@dataclass(frozen=True)
class Request:
    """name: run, checkpoint, framework, recipe or open_clip model.  image_size: (height, width).
    batch: images at once.  model, mask, plan, settings, vocabulary: as `bench` takes them, paths as
    text; None or empty for the target's own."""

    name: str
    image_size: tuple[int, int]
    batch: int = 1
    model: str | None = None
    mask: str | None = None
    plan: str | None = None
    settings: tuple[str, ...] = ()
    vocabulary: str | None = None

    def open(self, *, device: str = "meta") -> Target:
        """The target, under its mask and plan; the weights of one that comes without any are on `device`.

        A checkpoint carries its own CLIP, mask, plan and vocabulary, whatever is asked here. Raises
        InputError as `load_target` does and where a file is missing or broken, MismatchError where mask or
        plan are of another architecture (the latter two when counting).
        """
        return load_target(
            self.name,
            model=self.model,
            mask=self.mask,
            plan=self.plan,
            vocabulary=self.vocabulary,
            settings=self.settings,
            device=device,
        )


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of `HxW`, or of one number for a square; InputError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", text.strip())
    if match is None or not int(match[1]) or not int(match[2] or 1):
        raise InputError(f"--image-size {text}: write HEIGHTxWIDTH, for instance 800x1216")
    return int(match[1]), int(match[2] or match[1])
