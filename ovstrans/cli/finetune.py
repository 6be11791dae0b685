"""`ovstrans finetune`: train a framework under a mask and a freeze plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ovstrans.cli import common, completion
from ovstrans.files import OUTPUT_DIR
from ovstrans.recipes.schema import FinetuneRecipe

Framework = Annotated[
    str | None,
    typer.Argument(
        metavar="[FRAMEWORK]",
        autocompletion=completion.FRAMEWORKS,
        help="Framework to train; default deeplabv3, or the recipe's.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", autocompletion=completion.MODELS, help="open_clip model; default the recipe's (RN-mini)."),
]
MaskFile = Annotated[
    Path | None,
    typer.Option("--mask", help="Mask file; default ovstrans-out/mask.safetensors if it exists."),
]
NoMask = Annotated[bool, typer.Option("--no-mask", help="Train the dense model.")]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="Freeze plan (alpha file); default ovstrans-out/alpha.json if it exists."),
]
NoPlan = Annotated[bool, typer.Option("--no-plan", help="Freeze nothing.")]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        autocompletion=completion.FINETUNE_RECIPES,
        help="Recipe; default FRAMEWORK-mini, see `ovstrans recipes list`.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out, exactly.")]
Out = Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder to write.")]


@common.recipe_options(
    FinetuneRecipe, after="no_plan", panel="Training", panels={"data.dataset": "", "run": "", "run.seed": "Common"}
)
def finetune(
    framework: Framework = None,
    *,
    clip: Model = None,
    pretrained: common.Pretrained = None,
    mask: MaskFile = None,
    no_mask: NoMask = False,
    plan: PlanFile = None,
    no_plan: NoPlan = False,
    recipe: RecipeName = None,
    settings: common.RecipeSettings = None,
    resume: Resume = False,
    dry_run: common.DryRun = False,
    out: Out = OUTPUT_DIR / "run",
    data_root: common.DataRoot = None,
    device: common.Device = "auto",
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
    **options: Any,
) -> None:
    """Fine-tune a segmenter on a CLIP, with a mask and a freeze plan in force.

    Without arguments: DeepLabV3 on the bundled RN-mini and the generated scenes, with the mask and the plan that
    `prune` and `analyze` left in ovstrans-out. Under torchrun it runs in all processes.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console, files
    from ovstrans.errors import InputError
    from ovstrans.training.distributed import is_worker_rank
    from ovstrans.training.finetune import finetune as run
    from ovstrans.training.resolve import discover_artifacts

    for file, switch, name in ((mask, no_mask, "mask"), (plan, no_plan, "plan")):
        if file is not None and switch:
            raise InputError(f"`{name}` and `{name}=False`: give one of them")
    console.set_quiet(quiet or is_worker_rank())
    given: dict[str, Any] = {
        "framework": framework,
        "clip": clip,
        "recipe": recipe,
        "settings": settings or (),
        "pretrained": pretrained,
        "mask": False if no_mask else mask,
        "plan": False if no_plan else plan,
        **options,
    }
    if not resume:
        if not is_worker_rank() and not dry_run:
            files.check_output(out, force=force, directory=True)
        found = discover_artifacts(OUTPUT_DIR, **given)
        given |= {"mask": found.mask, "plan": found.plan}
    given |= {"data_root": data_root, "out": out, "resume": resume, "device": device}
    if dry_run:
        found_run = run(dry_run=True, **given)
        if not is_worker_rank():
            common.show_dry_run(found_run)
        return
    with console.progress_bar() as progress:
        run(force=force, progress=progress, **given)
