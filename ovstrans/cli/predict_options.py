"""The options of `ovstrans predict`, in the order of its help; those of segments are in `predict_segments`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ovstrans.cli.inference_options import LOOK, WORDS

WINDOW = 1024
"""Side of the windows that images are predicted in which are too large to be predicted as a whole."""

_OUTPUT = "Output"
Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="[CHECKPOINT] IMAGE",
        help="A run or checkpoint (by default the run of `finetune`), then images and folders of images or video "
        "frames, sub-folders included.",
        show_default=False,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar='"A, B, ..."',
        help="What to tell apart, in any words; by default what the checkpoint was trained on.",
        rich_help_panel=WORDS,
    ),
]
VocabularyName = Annotated[
    str | None,
    typer.Option(
        "--vocabulary",
        metavar="FILE|NAME",
        help="The same from a file (one class a line, or .toml), or of a published dataset (ade20k-150).",
        rich_help_panel=WORDS,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"Look through overlapping windows of this side; {WINDOW} by default for images beyond 4 megapixels.",
        rich_help_panel=LOOK,
    ),
]
Confidence = Annotated[
    bool,
    typer.Option(
        "--confidence",
        help="Also write how sure the model is: gray pictures, 0..255 for 0..1.",
        rich_help_panel=_OUTPUT,
    ),
]
Overlay = Annotated[
    bool,
    typer.Option("--overlay/--no-overlay", help="Write the images under their classes.", rich_help_panel=_OUTPUT),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where the same command was interrupted.", rich_help_panel=_OUTPUT)
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.", rich_help_panel=_OUTPUT)]
