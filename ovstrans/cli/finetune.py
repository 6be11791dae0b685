"""`ovstrans finetune`: train a framework under a mask and a freeze plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ovstrans.cli import common
from ovstrans.files import OUTPUT_DIR
from ovstrans.recipes.schema import FinetuneRecipe

Framework = Annotated[
    str | None, typer.Argument(metavar="[FRAMEWORK]", help="Default deeplabv3, or the recipe's.", show_default=False)
]
Model = Annotated[str | None, typer.Option("--model", help="open_clip model; default the recipe's (RN-mini).")]
MaskFile = Annotated[
    Path | None,
    typer.Option("--mask", help="Mask to train under; default ovstrans-out/mask.safetensors where it is."),
]
NoMask = Annotated[bool, typer.Option("--no-mask", help="Train the dense model.")]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="Freeze plan (alpha file); default ovstrans-out/alpha.json where it is."),
]
NoPlan = Annotated[bool, typer.Option("--no-plan", help="Freeze nothing.")]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="Default FRAMEWORK-mini; see `ovstrans recipes list`."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run at --out, exactly.")]
Out = Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder to write.")]


@common.recipe_options(
    FinetuneRecipe, after="no_plan", panel="Training", panels={"data.dataset": "", "run": "", "run.seed": "Common"}
)
def finetune(
    framework: Framework = None,
    *,
    model: Model = None,
    pretrained: common.Pretrained = None,
    mask: MaskFile = None,
    no_mask: NoMask = False,
    plan: PlanFile = None,
    no_plan: NoPlan = False,
    recipe: RecipeName = None,
    settings: common.RecipeSettings = None,
    resume: Resume = False,
    out: Out = OUTPUT_DIR / "run",
    data_root: common.DataRoot = None,
    device: common.Device = "auto",
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
    **options: Any,
) -> None:
    """Fine-tune a segmenter on a CLIP, with the mask and the freeze plan in force.

    Without arguments: DeepLabV3 on the bundled RN-mini and the generated scenes, under the mask and
    plan that `prune` and `analyze` left in ovstrans-out. Runs under torchrun as it is.
    """
    common.start(quiet=quiet, debug=debug)
    common.use_data_root(data_root)
    from ovstrans import console, files
    from ovstrans.errors import InputError
    from ovstrans.training import resolve as choose
    from ovstrans.training.distributed import is_worker_rank
    from ovstrans.training.finetune import finetune as run

    for file, switch, name in ((mask, no_mask, "mask"), (plan, no_plan, "plan")):
        if file is not None and switch:
            raise InputError(f"--{name} and --no-{name}: give one of them")
    console.set_quiet(quiet or is_worker_rank())
    given: dict[str, Any] = {
        "framework": framework,
        "recipe": recipe,
        "settings": settings or (),
        "model": model,
        "pretrained": pretrained,
        "mask": _text(mask, no_mask),
        "plan": _text(plan, no_plan),
        **options,
    }
    if not resume and not is_worker_rank():
        files.check_output(out, force=force, directory=True)
    if resume:
        chosen = choose.resume_recipe(out, **given)
        if chosen is None:
            console.say(f"{out}: this run is finished; nothing to resume")
            return
    else:
        chosen, notes = choose.discover_artifacts(
            choose.choose_recipe(**given),
            OUTPUT_DIR,
            mask=mask is None and not no_mask,
            plan=plan is None and not no_plan,
        )
        for note in notes:
            console.say(note)
    run(chosen, out, device=common.pick_device(device), resume=resume, force=force)


def _text(path: Path | None, no: bool = False) -> str | None:
    return "" if no else None if path is None else str(path)
