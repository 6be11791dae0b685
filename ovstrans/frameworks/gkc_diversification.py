"""Text diversification of GKC: a class loss under synonyms, so that training does not fit one list of names.

Han et al. 2023 (GKC, arXiv 2303.09181). For each segment a synonym of its class has been chosen (see
`training.teacher_targets`). Within an image, the first synonym chosen for a class takes the class's column in the
softmax; other synonyms of the same class get further columns. Classes that the image does not show keep their names.

Shapes: `B` batch, `Q` queries, `N` segments of an image, `K` classes, `S` distinct synonyms of a batch, `X` most
further columns of an image, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ovstrans.frameworks.mask2former_losses import Targets


@dataclass(frozen=True)
class Diversified:
    """The softmax columns of each image of a batch under synonyms.

    Attributes:
        rows: Text embeddings of the synonyms, unit rows [S, E].
        columns: int64 [B, K + X], whose score each column holds: below K that of the class under its own name, K + i
            that of synonym i, -1 for no column.
        targets: Of each image, as before but with classes that count in these columns.
    """

    rows: Tensor
    columns: Tensor
    targets: list[Targets]

    def scores(self, class_scores: Tensor, synonym_scores: Tensor) -> Tensor:
        """Gather the scores of the columns.

        Images with fewer columns are filled up with the lowest finite number, which takes no part in a softmax. (In
        the published code the embedding of an empty text competes there.)

        Args:
            class_scores: [B, Q, K + 1], of the classes under their own names, the void class last.
            synonym_scores: [B, Q, S], of `rows`.

        Returns:
            [B, Q, K + X + 1], the void class last.
        """
        both = torch.cat([class_scores[..., :-1], synonym_scores], dim=-1)
        index = self.columns[:, None, :].expand(-1, both.shape[1], -1)
        gathered = both.gather(2, index.clamp(min=0)).masked_fill(index < 0, torch.finfo(both.dtype).min)
        return torch.cat([gathered, class_scores[..., -1:]], dim=-1)


def diversify(targets: Sequence[Targets], synonyms: Sequence[Tensor], num_classes: int) -> Diversified:
    """Lay out the softmax columns of each image.

    As published, a further synonym has one column in an image, even if it was chosen for several classes.

    Args:
        targets: Of each image.
        synonyms: Of each image the embedding of the synonym of each segment, [N, E]; equal rows are one synonym.
        num_classes: K.
    """
    rows, row_of_segment = torch.unique(torch.cat(list(synonyms)), dim=0, return_inverse=True)
    columns: list[list[int]] = []
    renamed: list[Targets] = []
    next_row = iter(row_of_segment.tolist())
    for each in targets:
        layout = list(range(num_classes))
        replaced: set[int] = set()
        classes = []
        for class_index in each.classes.tolist():
            name = num_classes + next(next_row)
            if class_index not in replaced:
                replaced.add(class_index)
                layout[class_index] = name
            if layout[class_index] == name:
                classes.append(class_index)
                continue
            if name not in layout[num_classes:]:
                layout.append(name)
            classes.append(layout.index(name, num_classes))
        columns.append(layout)
        renamed.append(replace(each, classes=each.classes.new_tensor(classes)))
    longest = max(len(layout) for layout in columns)
    padded = [layout + [-1] * (longest - len(layout)) for layout in columns]
    return Diversified(rows, torch.tensor(padded, device=rows.device), renamed)
