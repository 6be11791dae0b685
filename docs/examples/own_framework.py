"""A framework of your own, the smallest that works: python docs/examples/own_framework.py"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ovstrans
from ovstrans.clip.backbone import drop_head, encode_stages, stage_channels
from ovstrans.clip.text import TextClassifier, cosine_scores, embed_vocabulary
from ovstrans.datasets.catalog import open_dataset
from ovstrans.frameworks.base import Batch, Framework


# --8<-- [start:framework]
class Linear(Framework):
    """One linear layer on the last stage of the backbone; every position is compared with class names."""

    name = "linear"
    defaults = {"scale": 100.0}  # options with their default values; users set them with --set model.scale=50

    def __init__(self, **given) -> None:
        super().__init__(**given)  # copies the image encoder to self.backbone, keeps the text classifier
        drop_head(self.backbone)  # CLIP's own attention pool is not needed
        self.embed = nn.Conv2d(stage_channels(self.backbone)["res5"], self.embed_dim, 1)

    def logits(self, images: Tensor, text: TextClassifier | None = None) -> Tensor:
        """Return class scores [B, K, h, w] of images [B, 3, H, W]; the base class resizes them."""
        features = encode_stages(self.backbone, self.prepare(images))["res5"]
        return cosine_scores(self.embed(features), text or self.text, self.options["scale"])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a labelled batch; novel classes give no training signal."""
        novel = torch.tensor(sorted(self.text.vocabulary.novel), device=batch.labels.device)
        labels = batch.labels.masked_fill(torch.isin(batch.labels, novel), batch.ignore)
        return {"cross_entropy": F.cross_entropy(self.segment(batch.images), labels, ignore_index=batch.ignore)}

    def components(self) -> dict[str, nn.Module]:
        """Return the parts that cost reports list; the backbone is called `trunk`."""
        return {"trunk": self.backbone, "embed": self.embed}


# --8<-- [end:framework]
def build() -> Framework:
    """Return the framework around RN-mini, with the classes of `scenes`."""
    clip = ovstrans.load_clip()
    text = embed_vocabulary(clip, open_dataset("scenes", split="train").vocabulary)
    return Linear(encoder=clip.visual, mean=clip.mean, std=clip.std, text=text)


if __name__ == "__main__":
    framework = build()
    scene = open_dataset("scenes", split="train", size=96)[0]
    batch = Batch(scene.image[None] / 255, scene.label[None].long())
    print({name: loss.item() for name, loss in framework.losses(batch).items()})
