"""All that a target costs at inference: per image, and once per vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ovstrans.costs.flops import Flops, count_flops
from ovstrans.costs.released_code import as_released, released_differs
from ovstrans.costs.target import Target
from ovstrans.costs.text_encoder import TextEncoderFlops, count_text_encoder
from ovstrans.frameworks.base import Framework


@dataclass(frozen=True)
class TargetFlops:
    """image: what inference runs.  released: what the framework's released code runs for the same answer; None
    where it is the same, or another counter's.  text_encoder: what the vocabulary costs once; None without."""

    image: Flops
    released: Flops | None = None
    text_encoder: TextEncoderFlops | None = None

    def as_json(self, *, per_layer: bool = False) -> dict[str, Any]:
        """The `flops` entry of a report: that of `image`, with "text_encoder" and "released"."""
        released = None
        if self.released is not None:
            released = {
                "dense": self.released.dense,
                "effective": self.released.effective,
                "components": self.released.components(),
            }
        return {
            **self.image.as_json(per_layer=per_layer),
            "text_encoder": None if self.text_encoder is None else self.text_encoder.as_json(),
            "released": released,
        }


def count_target(target: Target, image_size: tuple[int, int], *, counter: str = "torch", batch: int = 1) -> TargetFlops:
    """What `target` costs on images [batch, 3, *image_size]; see `count_flops`, which raises the same errors."""
    module = target.module
    given: dict[str, Any] = {
        "components": target.components,
        "mask": target.mask,
        "counter": counter,
        "batch": batch,
    }
    image = count_flops(module, image_size, **given)
    if counter != "torch" or not isinstance(module, Framework):
        return TargetFlops(image)
    released = None
    if released_differs(module):
        with as_released(module):
            released = count_flops(module, image_size, **given)
    return TargetFlops(image, released, count_text_encoder(module, target.model))
