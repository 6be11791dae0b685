"""`ovstrans finetune`: train a framework under a mask and a freeze plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ovstrans.cli import common
from ovstrans.files import OUTPUT_DIR

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
PlanAfter = Annotated[
    int | None, typer.Option("--plan-after", metavar="N", help="Train everything N steps, then analyse and freeze.")
]
Freeze = Annotated[
    str | None, typer.Option("--freeze", metavar="RULE", help="Rule of --plan-after, as in `ovstrans analyze`.")
]
Init = Annotated[
    str | None,
    typer.Option("--init", help="pretrained (default): CLIP's weights; pruned: those that prune left; random."),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Pruned weights for --init pruned; default those beside the mask.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="NAME[:SPLIT] (`ovstrans data list`) or folder:PATH[:SPLIT]; default the recipe's.",
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="Default FRAMEWORK-mini; see `ovstrans recipes list`."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe: optimizer.lr=0.001. Repeatable."),
]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", help="Length of the run; default the recipe's.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run at --out, exactly.")]
Out = Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder to write.")]


def finetune(
    framework: Framework = None,
    model: Model = None,
    pretrained: common.Pretrained = None,
    mask: MaskFile = None,
    no_mask: NoMask = False,
    plan: PlanFile = None,
    no_plan: NoPlan = False,
    plan_after: PlanAfter = None,
    freeze: Freeze = None,
    init: Init = None,
    weights: Weights = None,
    data: Data = None,
    data_root: common.DataRoot = None,
    recipe: RecipeName = None,
    changes: Set = None,
    steps: Steps = None,
    resume: Resume = False,
    out: Out = OUTPUT_DIR / "run",
    device: common.Device = "auto",
    seed: common.RecipeSeed = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
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
        "changes": changes or (),
        "model": model,
        "pretrained": pretrained,
        "data": data,
        "steps": steps,
        "mask": _text(mask, no_mask),
        "plan": _text(plan, no_plan),
        "plan_after": plan_after,
        "freeze": freeze,
        "init": init,
        "weights": _text(weights),
        "seed": seed,
    }
    if not resume and not is_worker_rank():
        files.check_output(out, force=force, directory=True)
    if resume:
        settings = choose.resume_settings(out, **given)
        if settings is None:
            console.say(f"{out}: this run is finished; nothing to resume")
            return
    else:
        settings, notes = choose.discover_artifacts(
            choose.choose_settings(**given),
            OUTPUT_DIR,
            mask=mask is None and not no_mask,
            plan=plan is None and not no_plan,
        )
        for note in notes:
            console.say(note)
    run(settings, out, device=common.pick_device(device), resume=resume, force=force)


def _text(path: Path | None, no: bool = False) -> str | None:
    return "" if no else None if path is None else str(path)
