"""How images are looked at and in which words: options that `bench` and `predict` share."""

from __future__ import annotations

from typing import Annotated

import typer

WORDS = "Words"
LOOK = "How to look"

Names = Annotated[
    str,
    typer.Option(
        metavar="WAY",
        help="Which names of a class go into prompts: synonyms, plain, clean, joined; auto: as the framework was "
        "published.",
        rich_help_panel=WORDS,
    ),
]
ShortSide = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Resize to this short side; 0 for the image's own. By default as published for the data (`predict`: "
        "those of the training), else the image's own.",
        rich_help_panel=LOOK,
        show_default=False,
    ),
]
LongSide = Annotated[int | None, typer.Option(min=1, help="Resize to at most this long side.", rich_help_panel=LOOK)]
Stride = Annotated[
    int | None, typer.Option(min=1, help="From window to window; 2/3 of the window.", rich_help_panel=LOOK)
]
Flip = Annotated[
    bool, typer.Option("--flip", help="Look at the mirror image too: the mean of both.", rich_help_panel=LOOK)
]
