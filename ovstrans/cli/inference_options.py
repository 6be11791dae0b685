"""Options that `bench` and `predict` share: the prompts of the class names, and how images are scored."""

from __future__ import annotations

from typing import Annotated

import typer

PROMPTS = "Class names"
SCORING = "Image size and windows"

Names = Annotated[
    str,
    typer.Option(
        metavar="WAY",
        help="Which names of a class go into prompts: synonyms, plain, clean, joined; auto: as the framework was "
        "published.",
        rich_help_panel=PROMPTS,
    ),
]
ShortSide = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Resize images to this short side; 0 for their own. By default as published for the data (`predict`: for "
        "the training data), else their own.",
        rich_help_panel=SCORING,
        show_default=False,
    ),
]
LongSide = Annotated[
    int | None, typer.Option(min=1, help="Resize images to at most this long side.", rich_help_panel=SCORING)
]
Stride = Annotated[
    int | None, typer.Option(min=1, help="Distance between windows; 2/3 of the window.", rich_help_panel=SCORING)
]
Flip = Annotated[
    bool, typer.Option("--flip", help="Average the scores with those of the mirrored image.", rich_help_panel=SCORING)
]
