"""Showing a dataset: a picture of some of its images with their labels."""

from __future__ import annotations

from pathlib import Path

from ovstrans.datasets.catalog import open_dataset
from ovstrans.datasets.drawing import choose_evenly, save_contact_sheet
from ovstrans.errors import counted
from ovstrans.files import OUTPUT_DIR, check_output


def show_dataset(
    name: str = "scenes:train",
    *,
    data_root: Path | str | None = None,
    images: int = 8,
    size: int | None = None,
    out: Path | str | None = None,
    force: bool = False,
) -> Path:
    """Draw images of a dataset with their label maps below, and save the picture as PNG.

    Args:
        name: Name of the dataset. Without a split, `val` is shown.
        data_root: Where to look for published datasets, see `resolve_roots`.
        images: How many images to draw, spread evenly over the split.
        size: Side of generated images in pixels.
        out: The PNG file; by default `ovstrans-out/data/NAME-SPLIT.png`, which is replaced.
        force: Whether to replace `out` if it exists.

    Returns:
        The path of the picture.

    Raises:
        InputError: The dataset cannot be opened or read, or `out` exists.
    """
    if out is not None:
        check_output(out, force=force)
    dataset = open_dataset(name, split="val", size=size, data_root=data_root)
    total = len(dataset)
    shown = sorted(choose_evenly(total, images))
    path = Path(out) if out is not None else OUTPUT_DIR / "data" / f"{dataset.name}-{dataset.split}.png"
    classes = counted(len(dataset.vocabulary), "class", "classes")
    title = f"{dataset.name}:{dataset.split}, {len(shown)} of {counted(total, 'image')}, {classes}"
    return save_contact_sheet(path, (dataset[index] for index in shown), dataset, title=title)
