"""Your own data, in two ways: python docs/examples/own_dataset.py FOLDER"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import ovstrans
from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.sample import Sample
from ovstrans.vocabulary.vocabulary import Vocabulary


# First way: images and label maps in folders, and a file that describes them.
def write_folder(folder: Path) -> str:
    """Write four images of light and dark stripes with label maps; return the dataset's name."""
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True, exist_ok=True)
    for number in range(4):
        image, label = stripes(number)
        Image.fromarray(image).save(folder / "images" / "train" / f"{number}.png")
        Image.fromarray(label).save(folder / "labels" / "train" / f"{number}.png")
    description = 'classes = ["dark", "light, bright"]\nimages = "images/{split}"\nlabels = "labels/{split}"\n'
    (folder / "dataset.toml").write_text(description, encoding="utf-8")
    return f"folder:{folder}:train"


# Second way: a class that follows the Dataset protocol.
# --8<-- [start:protocol]
class Stripes:
    """Images of light and dark stripes, made on the fly."""

    name = "stripes"
    split = "train"
    vocabulary = Vocabulary("stripes", (("dark",), ("light", "bright")))
    ignore = 255
    published_size = None
    videos: Sequence[range] = ()

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        image, label = stripes(index)
        return Sample(
            image=torch.from_numpy(image).permute(2, 0, 1),  # uint8 [3, H, W]
            label=torch.from_numpy(label),  # uint8 [H, W] of class indices
            name=str(index),
        )


# --8<-- [end:protocol]
def stripes(number: int, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Return an image [size, size, 3] and its label map [size, size]."""
    label = ((np.arange(size) // (8 * (number + 1))) % 2).astype(np.uint8)
    label = np.broadcast_to(label, (size, size)).copy()
    image = np.where(label[:, :, None] == 1, np.uint8(230), np.uint8(20)).repeat(3, axis=2)
    return image, label


def main(folder: Path) -> None:
    """Train a few steps on each and evaluate."""
    for number, data in enumerate((write_folder(folder / "data"), Stripes())):
        if isinstance(data, str):
            print(data, len(open_dataset(data, split="train")), "images")
        run = ovstrans.finetune("deeplabv3", data=data, steps=2, batch=4, out=folder / f"run-{number}")
        print(ovstrans.bench(run, data=[data]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
