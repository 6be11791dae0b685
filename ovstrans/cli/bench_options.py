"""The options of `ovstrans bench`, by panel of its help."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from ovstrans.cli.inference_options import PROMPTS, SCORING
from ovstrans.cli.optional import OptionalValues
from ovstrans.errors import InputError
from ovstrans.files import OUTPUT_DIR

PAPER_SIZE = (800, 1216)
"""Where published inference costs are counted (OpenTrans sec. 4.1): the first COCO validation image."""
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")


_ALWAYS = ("targets", "json", "device", "force", "quiet", "debug")
_COUNTED = ("model", "mask", "plan", "settings", "vocabulary", "image_size", "batch", "counter")
_INSTEAD: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "update": ("a lock's update", ("update", "check", *_COUNTED, *_ALWAYS)),
    "check": ("a lock's check", ("check", "tolerance", *_COUNTED, *_ALWAYS)),
    "paper": ("--paper", ("paper", "markdown", "csv", *_ALWAYS)),
}
"""What `bench` does instead of its own work, by the parameter that asks for it: its name, the parameters it heeds."""


class BenchCommand(OptionalValues):
    """`bench` is a command of which these options need no value, and that heeds every option it is given."""

    optional: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "--update": (".json",),
        "--plot": PICTURE_SUFFIXES,
        "--markdown": (".md", ".markdown", ".txt"),
        "--csv": (".csv", ".txt"),
    }

    def invoke(self, ctx: Any) -> Any:
        """As click does; InputError for an option that has no part in what is asked for."""
        for asking, (name, heeded) in _INSTEAD.items():
            if not ctx.params[asking]:
                continue
            for parameter in self.params:
                source = ctx.get_parameter_source(parameter.name)
                if parameter.name not in heeded and source is not None and source.name != "DEFAULT":
                    raise InputError(f"{parameter.opts[0]}: has no part in {name}; leave it out")
            break
        return super().invoke(ctx)


Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TARGET",
        show_default=False,
        help="Runs, checkpoints, frameworks, recipes, CLIP models, or reports that --json wrote; "
        "by default the run of `finetune`.",
    ),
]

_COUNT = "Counting"
Model = Annotated[str | None, typer.Option(help="CLIP of a framework or recipe.", rich_help_panel=_COUNT)]
Mask = Annotated[
    Path | None, typer.Option(help="Count targets without weights under this mask.", rich_help_panel=_COUNT)
]
Plan = Annotated[Path | None, typer.Option(help="Count what trains under this freeze plan.", rich_help_panel=_COUNT)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another value in a recipe, or of a framework's option (model.queries=100); repeatable.",
        rich_help_panel=_COUNT,
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="HxW",
        help="Images to count (by default the data's size, or 800x1216).",
        rich_help_panel=_COUNT,
    ),
]
Batch = Annotated[int | None, typer.Option(min=1, help="Images to count at once (1).", rich_help_panel=_COUNT)]
Counter = Annotated[
    str,
    typer.Option(
        help="torch: exact; fvcore, thop-rules: as the literature counts.",
        rich_help_panel=_COUNT,
    ),
]
PerLayer = Annotated[bool, typer.Option("--per-layer", help="Every layer's MACs.", rich_help_panel=_COUNT)]
Paper = Annotated[
    bool,
    typer.Option(
        "--paper",
        help="Instead: the costs in OpenTrans' Tables 1 and 2, each counted as it was, beside the published figure.",
        rich_help_panel=_COUNT,
    ),
]

VocabularyName = Annotated[
    str | None,
    typer.Option(
        "--vocabulary",
        metavar="NAME|FILE",
        help="Class names to count a target without weights with, and to evaluate others with in the place of the "
        "data's own: a dataset's, or a file's.",
        rich_help_panel=PROMPTS,
    ),
]

_LOCK = "Regression"
Check = Annotated[
    Path | None,
    typer.Option(
        metavar="LOCK",
        help="Count every target in the lock (or those named); exit status 3 where a count moved.",
        rich_help_panel=_LOCK,
    ),
]
Update = Annotated[
    str | None,
    typer.Option(
        metavar="[LOCK]",
        help="Write the counts into the lock: all of them anew, or the targets named beside, which are "
        "added if new. A LOCK that does not exist is made.",
        rich_help_panel=_LOCK,
    ),
]
Tolerance = Annotated[
    str,
    typer.Option(
        metavar="N|P%",
        help="What a count may move: per cent of the recorded value (0.1%), or so many MACs or params (1000).",
        rich_help_panel=_LOCK,
    ),
]

_MEASURE = "Measuring"
Latency = Annotated[
    bool,
    typer.Option(
        "--latency",
        help="Time, memory and energy of a forward pass, dense and masked in alternating rounds.",
        rich_help_panel=_MEASURE,
    ),
]
Rounds = Annotated[int, typer.Option(min=1, help="Passes of each to time.", rich_help_panel=_MEASURE)]
Warmup = Annotated[int, typer.Option(min=0, help="Passes of each before that.", rich_help_panel=_MEASURE)]

_EVALUATE = "Evaluating"
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="Labelled data, NAME[:SPLIT] or folder:PATH[:SPLIT]; repeatable; all: every published dataset that is "
        "there; none to skip. By default the validation part of what a target was trained on.",
        rich_help_panel=_EVALUATE,
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Evaluate on the first so many images.", rich_help_panel=_EVALUATE)
]
Window = Annotated[
    int | None, typer.Option(min=1, help="Look through overlapping windows of this side.", rich_help_panel=SCORING)
]
Denominator = Annotated[
    str,
    typer.Option(
        metavar="WAY",
        help="Classes in mIoU: present (in the ground truth), or union (predicted ones too).",
        rich_help_panel=_EVALUATE,
    ),
]
Panoptic = Annotated[
    bool,
    typer.Option("--panoptic", help="Panoptic quality, where data and framework have it.", rich_help_panel=_EVALUATE),
]
PerClass = Annotated[bool, typer.Option("--per-class", help="A table of every class.", rich_help_panel=_EVALUATE)]

_OUTPUT = "Output"
Pictures = Annotated[
    Path | None,
    typer.Option(help=f"Folder of all pictures ({OUTPUT_DIR / 'bench'}, renewed each time).", rich_help_panel=_OUTPUT),
]
Show = Annotated[int, typer.Option(min=0, help="Images on the picture pages.", rich_help_panel=_OUTPUT)]
Plot = Annotated[
    str | None,
    typer.Option(
        metavar="[FILE.png]",
        help="Draw mIoU over effective MACs, MACs layer by layer, and the split of training MACs: three files in "
        "the folder of pictures, or one page: FILE (.png, .pdf, .svg).",
        rich_help_panel=_OUTPUT,
    ),
]
Markdown = Annotated[
    str | None,
    typer.Option(metavar="[FILE.md]", help="The table as Markdown, instead or into a file.", rich_help_panel=_OUTPUT),
]
Csv = Annotated[
    str | None,
    typer.Option(
        metavar="[FILE.csv]", help="The table as CSV, plain values, instead or into a file.", rich_help_panel=_OUTPUT
    ),
]
