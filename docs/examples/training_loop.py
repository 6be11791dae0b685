"""Keep a mask in force in a training loop of your own: python docs/examples/training_loop.py

Any model that contains the CLIP image encoder will do. Here it is a classifier of eight colours on RN-mini.
"""

import torch
from torch import nn

import ovstrans


class Classifier(nn.Module):
    """An image encoder with a linear head."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.backbone = encoder  # the mask finds the image encoder under this name, or as `visual`
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return class scores [B, classes] of images [B, 3, 96, 96]."""
        return self.head(self.backbone(images))


def train(steps: int = 3) -> tuple[Classifier, ovstrans.Mask]:
    """Train on plain colours under a random mask; return the model and the mask."""
    torch.manual_seed(0)
    clip = ovstrans.load_clip()
    pruned = ovstrans.prune(clip, method="random", sparsity=0.9, steps=0)  # or ovstrans.load_mask("mask.safetensors")
    model = Classifier(clip.visual, clip.embed_dim, classes=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    pruned.mask.apply(model)  # masked weights are zero from here on
    with pruned.mask.held(optimizer):  # and stay zero after every step, whatever the optimizer does
        for _ in range(steps):
            labels = torch.arange(8)
            corners = torch.tensor([[(label >> bit) & 1 for bit in range(3)] for label in labels.tolist()])
            images = corners[:, :, None, None].float().expand(-1, -1, 96, 96)
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model, pruned.mask


if __name__ == "__main__":
    model, mask = train()
    print("masked weights that are not zero:", mask.violations(model) or "none")
