"""The options of `ovstrans predict`, by panel of its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ovstrans.cli.inference_options import PROMPTS, SCORING

_SEGMENTS = "Segments"
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
        help="The classes to tell apart, in any words; by default those of the training.",
        rich_help_panel=PROMPTS,
    ),
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        "--pretrained",
        metavar="TAG|FILE",
        help="CLIP weights that embed class names, where those that the checkpoint records are not there.",
    ),
]
VocabularyName = Annotated[
    str | None,
    typer.Option(
        "--vocabulary",
        metavar="FILE|NAME",
        help="The classes from a file (one a line, or .toml), or those of a published dataset (ade20k-150).",
        rich_help_panel=PROMPTS,
    ),
]
Things = Annotated[
    str | None,
    typer.Option(
        metavar='"A, B, ..."',
        help="Which of the classes are countable. By default those that the vocabulary says are; if it does not say, "
        "as with --classes, those that the training knew by the same name. The rest is stuff for --panoptic and things "
        "for --instances.",
        rich_help_panel=PROMPTS,
        show_default=False,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Score overlapping windows of this side; 1024 by default for images beyond 4 megapixels.",
        rich_help_panel=SCORING,
    ),
]
Runtime = Annotated[
    str,
    typer.Option(
        metavar="auto|sparse|dense",
        help="What runs the image encoder: sparse (kernels for CPUs that skip zero weights), dense (torch); auto: "
        "sparse where most weights are zero.",
        rich_help_panel=SCORING,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another value of an option that matters to inference alone: of deop model.proposals=folder:MASKS and "
        "model.two_stream=true, of fcclip model.alpha=0.5. Repeatable.",
        rich_help_panel=SCORING,
    ),
]
Panoptic = Annotated[
    bool,
    typer.Option(
        "--panoptic",
        help="Also write each pixel's segment, with runs of gkc, fcclip and deop: DIR/panoptic/NAME.png and "
        "DIR/panoptic.json, in COCO's format.",
        rich_help_panel=_SEGMENTS,
    ),
]
Instances = Annotated[
    bool,
    typer.Option(
        "--instances",
        help="Also write the things of each image with scores, boxes and masks, with runs of gkc, fcclip and deop: "
        "DIR/instances.json, in COCO's format of results.",
        rich_help_panel=_SEGMENTS,
    ),
]
Confidence = Annotated[
    bool,
    typer.Option(
        "--confidence",
        help="Also write the confidence in each pixel's class: gray pictures, 0..255 for 0..1.",
        rich_help_panel=_OUTPUT,
    ),
]
Overlay = Annotated[
    bool,
    typer.Option(
        "--overlay/--no-overlay", help="Write pictures of the images under their classes.", rich_help_panel=_OUTPUT
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with an interrupted command that had the same options.", rich_help_panel=_OUTPUT
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.", rich_help_panel=_OUTPUT)]
