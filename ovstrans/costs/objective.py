"""What a training step computes before its losses look at values: the outputs that gradients come from.

A step's cost is that of its forward pass as training runs it, not as inference does: the decoder of a mask
framework is judged at every prediction, class names are the base classes, distillation has projections of its
own, and nothing is summed up at pixels. The losses themselves need labels and a matching, which meta tensors
have not. Their products are few: those of the matching are in `run`; what is left out (the
comparison of captions with images, of regions with regions) is below 0.01 % of a step.

Shapes: `B` batch, `H W` image.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ovstrans.frameworks.base import Framework


def training_outputs(module: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """What the losses of a framework are computed from, for images [B, 3, H, W]; of another module its output."""
    return module.training_outputs(images) if isinstance(module, Framework) else [module(images)]
