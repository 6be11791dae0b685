"""The options of `ovstrans bench`, by panel of its help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ovstrans.cli import completion
from ovstrans.cli.inference_options import PROMPTS, SCORING
from ovstrans.files import OUTPUT_DIR

BARE = "-"
"""Value of an option that was given without one."""

OPTIONAL_VALUES: Mapping[str, tuple[str, ...]] = {
    "--update": (".json",),
    "--plot": (".png", ".pdf", ".svg"),
    "--markdown": (".md", ".markdown", ".txt"),
    "--csv": (".csv", ".txt"),
}
"""Options whose value may be left out, and the suffixes that their values have."""

_ALWAYS = ("targets", "json", "device", "force", "quiet", "debug")
_COUNTED = ("model", "mask", "plan", "settings", "vocabulary", "image_size", "batch", "counter")
MODES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "update": ("a lock's update", ("update", "check", *_COUNTED, *_ALWAYS)),
    "check": ("a lock's check", ("check", "tolerance", *_COUNTED, *_ALWAYS)),
    "paper": ("--paper", ("paper", "markdown", "csv", *_ALWAYS)),
}
"""Modes that replace the normal benchmark. Maps the option that selects a mode to its display name and the options that
it accepts."""

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TARGET",
        autocompletion=completion.TARGETS,
        show_default=False,
        help="Runs, checkpoints, frameworks, recipes, CLIP models, or reports that --json wrote; "
        "by default the run of `finetune`.",
    ),
]

_COUNT = "Counting"
Model = Annotated[
    str | None,
    typer.Option(autocompletion=completion.MODELS, help="CLIP of a framework or recipe.", rich_help_panel=_COUNT),
]
Mask = Annotated[Path | None, typer.Option(help="Mask to count targets without weights under.", rich_help_panel=_COUNT)]
Plan = Annotated[
    Path | None, typer.Option(help="Freeze plan to count targets without weights under.", rich_help_panel=_COUNT)
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a value of a recipe, or an option of a framework (model.queries=100); of a run only one that "
        "matters to inference alone (model.two_stream=true). Repeatable.",
        rich_help_panel=_COUNT,
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="HxW",
        help="Size of the images to count; by default the size of the data, or 800x1216.",
        rich_help_panel=_COUNT,
    ),
]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Number of images to count at once (1).", rich_help_panel=_COUNT)
]
Counter = Annotated[
    str,
    typer.Option(
        help="Counter: torch (exact), or fvcore or thop-rules, as the literature counts.",
        rich_help_panel=_COUNT,
    ),
]
PerLayer = Annotated[
    bool, typer.Option("--per-layer", help="Also show the MACs of every layer.", rich_help_panel=_COUNT)
]
Details = Annotated[
    bool,
    typer.Option(
        "--details",
        help="Show every figure: params and MACs by component, the parts of training, all metrics. "
        "By default about ten.",
        rich_help_panel=_COUNT,
    ),
]
Paper = Annotated[
    bool,
    typer.Option(
        "--paper",
        help="Instead: recompute the costs in OpenTrans' Tables 1 and 2 by the paper's conventions, beside the printed "
        "figures.",
        rich_help_panel=_COUNT,
    ),
]

VocabularyName = Annotated[
    str | None,
    typer.Option(
        "--vocabulary",
        metavar="NAME|FILE",
        help="Class names to count targets without weights with, and to evaluate the others with instead of the data's "
        "own: the name of a dataset, or a file.",
        rich_help_panel=PROMPTS,
    ),
]

_LOCK = "Regression"
Check = Annotated[
    Path | None,
    typer.Option(
        metavar="LOCK",
        help="Count every target in the lock, or those named; exit status 3 if a count changed.",
        rich_help_panel=_LOCK,
    ),
]
Update = Annotated[
    str | None,
    typer.Option(
        metavar="[LOCK]",
        help="Write the counts into the lock: of all its targets, or of those named, which are added if they are "
        "new. A LOCK that does not exist is made.",
        rich_help_panel=_LOCK,
    ),
]
Tolerance = Annotated[
    str,
    typer.Option(
        metavar="N|P%",
        help="Allowed change of a count: per cent of the recorded value (0.1%), or a number of MACs or params (1000).",
        rich_help_panel=_LOCK,
    ),
]

_MEASURE = "Measuring"
Latency = Annotated[
    bool,
    typer.Option(
        "--latency",
        help="Measure time, memory and energy of a forward pass, dense and masked in alternating rounds.",
        rich_help_panel=_MEASURE,
    ),
]
Rounds = Annotated[int, typer.Option(min=1, help="Timed passes of each.", rich_help_panel=_MEASURE)]
Warmup = Annotated[int, typer.Option(min=0, help="Passes of each before the timed ones.", rich_help_panel=_MEASURE)]
Runtime = Annotated[
    str,
    typer.Option(
        metavar="auto|sparse|csr|dense",
        help="What --latency lets skip the zeros of a masked model: sparse (the runtime for CPUs), csr (torch's sparse "
        "matrices), dense (nothing); auto: sparse where it runs, else csr.",
        rich_help_panel=_MEASURE,
    ),
]

_EVALUATE = "Evaluating"
Data = Annotated[
    list[str] | None,
    typer.Option(
        autocompletion=completion.DATA,
        help="Labelled data to evaluate on, NAME[:SPLIT] or folder:PATH[:SPLIT]; repeatable; all: every published "
        "dataset that is found; none to skip. By default the validation split of what a target was trained on.",
        rich_help_panel=_EVALUATE,
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Evaluate on the first so many images only.", rich_help_panel=_EVALUATE)
]
Window = Annotated[
    int | None,
    typer.Option(min=1, help="Score images in overlapping square windows of this side.", rich_help_panel=SCORING),
]
Denominator = Annotated[
    str,
    typer.Option(
        metavar="WAY",
        help="Classes that enter mIoU: present (in the ground truth), or union (also those predicted).",
        rich_help_panel=_EVALUATE,
    ),
]
Panoptic = Annotated[
    bool,
    typer.Option(
        "--panoptic",
        help="Also measure panoptic quality, if data and framework have segments.",
        rich_help_panel=_EVALUATE,
    ),
]
PerClass = Annotated[
    bool, typer.Option("--per-class", help="Also show a table of the classes.", rich_help_panel=_EVALUATE)
]

_OUTPUT = "Output"
Pictures = Annotated[
    Path | None,
    typer.Option(
        help=f"Folder for the pictures; by default {OUTPUT_DIR / 'bench'}, which is overwritten each time.",
        rich_help_panel=_OUTPUT,
    ),
]
Show = Annotated[int, typer.Option(min=0, help="Number of images on the pages of pictures.", rich_help_panel=_OUTPUT)]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on after the datasets and targets that an interrupted command with the same options finished.",
        rich_help_panel=_EVALUATE,
    ),
]
Plot = Annotated[
    str | None,
    typer.Option(
        metavar="[FILE.png]",
        help="Plot mIoU over effective MACs, MACs layer by layer, and the parts of training MACs: three files in the "
        "folder of pictures, or one page, FILE (.png, .pdf, .svg).",
        rich_help_panel=_OUTPUT,
    ),
]
Markdown = Annotated[
    str | None,
    typer.Option(
        metavar="[FILE.md]", help="Print the table as Markdown instead, or write it to a file.", rich_help_panel=_OUTPUT
    ),
]
Csv = Annotated[
    str | None,
    typer.Option(
        metavar="[FILE.csv]",
        help="Print the plain values as CSV instead, or write them to a file.",
        rich_help_panel=_OUTPUT,
    ),
]
