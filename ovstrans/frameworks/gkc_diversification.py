"""Text diversification: classes under other names, so that what is learnt is not a list of words.

Han et al. 2023 (GKC, arXiv 2303.09181). For each segment some synonym of its class has been chosen (see
`training.teacher_targets`). Of an image, the first choice for a class stands in the class's place among the names
to tell apart; other choices for the same class follow as names of their own. Classes that the image
does not show keep their names.

Shapes: `B` batch, `Q` queries, `N` segments of an image, `K` classes, `S` names chosen in a batch,
`X` most further names in an image, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ovstrans.frameworks.mask2former_losses import Targets


@dataclass(frozen=True)
class Diversified:
    """The names that the images of a batch are to tell apart.

    rows: [S, E], unit, the chosen ones.  columns: int64 [B, K + X], where the score of each name stands:
    below K the class under its own name, K + i for row i, -1 for none.  targets: as before, but that
    classes count in columns.
    """

    rows: Tensor
    columns: Tensor
    targets: list[Targets]

    def scores(self, plain: Tensor, chosen: Tensor) -> Tensor:
        """Scores [B, Q, K + X + 1], the void last; the least there is where an image has no such name.

        So what fills up the images with fewer names takes no part in a softmax, where the published
        code lets the embedding of an empty text compete.

        plain: [B, Q, K + 1], of the classes under their own names, the void last.  chosen: [B, Q, S], of
        `rows`.
        """
        both = torch.cat([plain[..., :-1], chosen], dim=-1)
        index = self.columns[:, None, :].expand(-1, both.shape[1], -1)
        picked = both.gather(2, index.clamp(min=0)).masked_fill(index < 0, torch.finfo(both.dtype).min)
        return torch.cat([picked, plain[..., -1:]], dim=-1)


def diversify(targets: Sequence[Targets], names: Sequence[Tensor], classes: int) -> Diversified:
    """The names of a batch's images.

    targets: of each image.  names: per image and segment the embedding of the chosen name, [N, E]; equal
    rows are one name.  classes: K.  As published a further name is one column, whatever classes of the
    image it was chosen for.
    """
    rows, which = torch.unique(torch.cat(list(names)), dim=0, return_inverse=True)
    columns: list[list[int]] = []
    renamed: list[Targets] = []
    chosen = iter(which.tolist())
    for each in targets:
        slots = list(range(classes))
        taken: set[int] = set()
        found = []
        for kind in each.classes.tolist():
            name = classes + next(chosen)
            if kind not in taken:
                taken.add(kind)
                slots[kind] = name
            if slots[kind] == name:
                found.append(kind)
                continue
            if name not in slots[classes:]:
                slots.append(name)
            found.append(slots.index(name, classes))
        columns.append(slots)
        renamed.append(replace(each, classes=each.classes.new_tensor(found)))
    most = max(len(slots) for slots in columns)
    padded = [slots + [-1] * (most - len(slots)) for slots in columns]
    return Diversified(rows, torch.tensor(padded, device=rows.device), renamed)
