"""What OpenTrans (arXiv 2404.07448v3) prints about costs, and by which conventions it seems to have got there.

Its tables mix counters, so their rows do not compare with each other. The conventions are reconstructed: some
are stated or stand in the released code, others are what fits the figures (inferred). "FLOPs" are MACs
throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_SIZE = (800, 1216)
"""The first image of COCO's val2017, 640x426, its short side at 800, padded to a multiple of 32 (sec. 4.1)."""
UNPADDED_SIZE = (800, 1202)
"""The same without padding: at which DeepLab's head fits (inferred; the released configuration pads)."""
TRAINING_SIZE = (512, 512)
"""Of training crops (supplement 6.1), and of the count in the released training script."""
DENSITY = 0.1
"""Of a pruned trunk: flat, of all its parameters and MACs, norms and pooling included (inferred; the released
procedure ends at 0.9^21 = 0.1094, and not in every layer the same)."""
BATCH = 28
"""Images a step (supplement 6.1)."""
STEPS = 40_000
"""Steps charged (inferred): 50,000 less the first 10,000, which train everything in every row."""

FROZEN = (
    *("conv1", "conv2", "conv3"),
    *(f"layer1.{name}" for name in ("0.conv1", "0.conv2", "1.conv2", "1.conv3", "2.conv2", "2.conv3")),
    *(f"layer2.{name}" for name in ("0.conv1", "0.conv2", "0.downsample.0", "1.conv1", "1.conv2")),
    *(f"layer2.{name}" for name in ("2.conv2", "2.conv3", "3.conv2", "3.conv3")),
    *(f"layer3.{name}" for name in ("0.conv1", "0.conv2", *(f"{block}.conv2" for block in range(1, 6)))),
    *("layer4.0.conv2", "layer4.2.conv2"),
)
"""27 layers named in a comment of the released training script: half of the trunk's 55, less the median."""

SOLID, FITS, OPEN = "solid", "fits", "not reproduced"
"""Grades of a reconstruction: stated or identified twice over; found by fitting; none that holds."""


@dataclass(frozen=True)
class Figure:
    """A printed figure.

    table, row, variant, quantity: where it stands.  unit: "params" or "MAC".  value: in units.
    grade: of its reconstruction.  convention: in words, as far as there is one.
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
        """`Han et al., pruned, FLOPs`."""
        return ", ".join((self.row, self.variant, self.quantity))


_TRUNK_CUT = f"less {1 - DENSITY:g} x all of the trunk"
_THOP_CUT = f"less {1 - DENSITY:g} x the trunk by thop, BatchNorm and pooling included"


def _params(row: str, dense: float, pruned: float, grade: str, convention: str) -> tuple[Figure, Figure]:
    return (
        Figure("Table 1", row, "dense", "params", "params", dense * 1e6, grade, convention),
        Figure("Table 1", row, "pruned", "params", "params", pruned * 1e6, grade, f"{_TRUNK_CUT}, BatchNorm too"),
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
    *_params(HAN, 44.1, 22.9, SOLID, "all of trunk and head; no embedding projection, text encoder or teacher"),
    *_flops(HAN, 268.2, 173.3, FITS, OPEN, "trunk by thop + head by fvcore, 800x1216"),
    *_params(DEEPLAB, 40.3, 19.1, FITS, "trunk + released ASPP (3072 channels in, no pooled branch) and decoder"),
    *_flops(DEEPLAB, 241.3, 146.8, FITS, FITS, "CLIP's trunk at 800x1216 + released head at 800x1202, by thop"),
    *_params(FCCLIP, 39.0, 17.8, SOLID, "by thop: of modules that it has a rule for and that ran"),
    *_flops(FCCLIP, 200.1, 105.6, SOLID, SOLID, "trunk + head by thop, 800x1216, 250 queries"),
    _training("full", 181.4, SOLID, "3 x (trunk + head by thop, 512x512) x 28 images x 40,000 steps"),
    _training("random", 164.5, OPEN, "full less the frozen layers' MACs"),
    _training("alpha*", 172.3, OPEN, "full less the frozen layers' MACs"),
    _training("alpha", 159.6, OPEN, "full less the frozen layers' MACs"),
    _training("alpha + pruning", 122.2, FITS, "full less 1.8 x trunk by ptflops and 0.1 x frozen layers"),
)
"""In the order of the paper's tables; `random`, `alpha*` and `alpha` name the half of the layers that is frozen."""
