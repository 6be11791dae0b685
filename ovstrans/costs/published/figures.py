"""The costs that OpenTrans (arXiv 2404.07448v3) prints, and the conventions that reproduce them.

Its tables mix counters, so their rows do not compare with each other. The conventions are reconstructed: some are
stated or stand in the released code, others are inferred from the figures. "FLOPs" are MACs throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_SIZE = (800, 1216)
"""The first image of COCO's val2017, 640x426, its short side at 800, padded to a multiple of 32 (sec. 4.1)."""
UNPADDED_SIZE = (800, 1202)
"""The same without padding, at which the figure of DeepLab's head fits (inferred; the released configuration pads)."""
TRAINING_SIZE = (512, 512)
"""Size of training crops (supplement 6.1), and of the count in the released training script."""
DENSITY = 0.1
"""Density of a pruned backbone: uniform, of all its parameters and MACs, norms and pooling included (inferred; the
released procedure ends at 0.9^21 = 0.1094, which differs between layers)."""
BATCH = 28
"""Images of a step (supplement 6.1)."""
STEPS = 40_000
"""Steps that the figures count (inferred): 50,000 less the first 10,000, which train everything in every row."""

FROZEN = (
    *("conv1", "conv2", "conv3"),
    *(f"layer1.{name}" for name in ("0.conv1", "0.conv2", "1.conv2", "1.conv3", "2.conv2", "2.conv3")),
    *(f"layer2.{name}" for name in ("0.conv1", "0.conv2", "0.downsample.0", "1.conv1", "1.conv2")),
    *(f"layer2.{name}" for name in ("2.conv2", "2.conv3", "3.conv2", "3.conv3")),
    *(f"layer3.{name}" for name in ("0.conv1", "0.conv2", *(f"{block}.conv2" for block in range(1, 6)))),
    *("layer4.0.conv2", "layer4.2.conv2"),
)
"""27 layers named in a comment of the released training script: half of the backbone's 55, less the median."""

SOLID, FITS, OPEN = "solid", "fits", "not reproduced"
"""Grades of a reconstruction: stated in the paper or identified in two ways; found by fitting; none that holds."""


@dataclass(frozen=True)
class Figure:
    """A printed figure.

    Attributes:
        table: Table that it stands in.
        row: Row of the table.
        variant: "dense" or "pruned"; in Table 2 what is frozen.
        quantity: "params", "FLOPs" or "training FLOPs".
        unit: "params" or "MAC".
        value: The figure, in units.
        grade: Grade of its reconstruction.
        convention: The convention in words, as far as there is one.
    """

    table: str
    row: str
    variant: str
    quantity: str
    unit: str
    value: float
    grade: str
    convention: str

    @property
    def key(self) -> str:
        """Name of the figure, such as `Han et al., pruned, FLOPs`."""
        return ", ".join((self.row, self.variant, self.quantity))


_BACKBONE_CUT = f"less {1 - DENSITY:g} x all of the backbone"
_THOP_CUT = f"less {1 - DENSITY:g} x the backbone by thop, BatchNorm and pooling included"


def _params(row: str, dense: float, pruned: float, grade: str, convention: str) -> tuple[Figure, Figure]:
    return (
        Figure("Table 1", row, "dense", "params", "params", dense * 1e6, grade, convention),
        Figure("Table 1", row, "pruned", "params", "params", pruned * 1e6, grade, f"{_BACKBONE_CUT}, BatchNorm too"),
    )


def _flops(
    row: str, dense: float, pruned: float, grade: str, pruned_grade: str, convention: str
) -> tuple[Figure, Figure]:
    return (
        Figure("Table 1", row, "dense", "FLOPs", "MAC", dense * 1e9, grade, convention),
        Figure("Table 1", row, "pruned", "FLOPs", "MAC", pruned * 1e9, pruned_grade, _THOP_CUT),
    )


def _training(variant: str, value: float, grade: str, convention: str) -> Figure:
    return Figure("Table 2", HAN, variant, "training FLOPs", "MAC", value * 1e15, grade, convention)


HAN, DEEPLAB, FCCLIP = "Han et al.", "DeepLabV3", "FC-CLIP"

FIGURES = (
    *_params(HAN, 44.1, 22.9, SOLID, "all of backbone and head; no embedding projection, text encoder or teacher"),
    *_flops(HAN, 268.2, 173.3, FITS, OPEN, "backbone by thop + head by fvcore, 800x1216"),
    *_params(DEEPLAB, 40.3, 19.1, FITS, "backbone + released ASPP (3072 channels in, no pooled branch) and decoder"),
    *_flops(DEEPLAB, 241.3, 146.8, FITS, FITS, "CLIP's backbone at 800x1216 + released head at 800x1202, by thop"),
    *_params(FCCLIP, 39.0, 17.8, SOLID, "by thop: of the modules that it has a rule for and that ran"),
    *_flops(FCCLIP, 200.1, 105.6, SOLID, SOLID, "backbone + head by thop, 800x1216, 250 queries"),
    _training("full", 181.4, SOLID, "3 x (backbone + head by thop, 512x512) x 28 images x 40,000 steps"),
    _training("random", 164.5, OPEN, "full less the frozen layers' MACs"),
    _training("alpha*", 172.3, OPEN, "full less the frozen layers' MACs"),
    _training("alpha", 159.6, OPEN, "full less the frozen layers' MACs"),
    _training("alpha + pruning", 122.2, FITS, "full less 1.8 x backbone by ptflops and 0.1 x frozen layers"),
)
"""All figures in the order of the paper's tables. `random`, `alpha*` and `alpha` name the frozen half of the layers."""
