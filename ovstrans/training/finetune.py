"""Fine-tuning: a framework on a CLIP, under a mask and a freeze plan, from set-up to checkpoint."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ovstrans import console, files
from ovstrans.checkpoints.file import Checkpoint, save_checkpoint
from ovstrans.clip.load import Clip, load_clip
from ovstrans.clip.text import embed_vocabulary
from ovstrans.datasets.catalog import open_dataset
from ovstrans.environment import environment
from ovstrans.errors import InputError, OvstransError
from ovstrans.frameworks import registry
from ovstrans.frameworks.base import Batch, Framework
from ovstrans.frameworks.registry import with_prompts
from ovstrans.masks.file import load_mask, save_mask
from ovstrans.masks.mask import Mask
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.training import distributed
from ovstrans.training.batches import Labelled, stream
from ovstrans.training.distributed import World
from ovstrans.training.freeze import check_plan, freeze, recalibrate, train_mode
from ovstrans.training.initial_weights import initial_image_encoder, plan_layers, text_encoder
from ovstrans.training.loop import Step, train
from ovstrans.training.optim import drop_frozen, make_optimizer
from ovstrans.training.precision import pick_precision, to_device
from ovstrans.training.run_folder import RunFolder
from ovstrans.training.state import load_state, save_state, seed_step, stopping
from ovstrans.training.teacher_targets import make_teacher_targets, warn_of_captions
from ovstrans.version import __version__


def finetune(
    settings: FinetuneRecipe,
    out: Path | str,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    force: bool = False,
) -> Path:
    """Train what `settings` say and leave a run folder at `out`; returns its path.

    The mask is in force from the first step to the last: masked weights are exactly zero after every
    optimizer step and in the checkpoint. Frozen layers get no gradient, no optimizer state and no
    change. Under torchrun every process calls this and rank 0 writes.

    With `resume`, a run that was interrupted goes on as if it had not been: on the CPU with the same
    thread count, the result is the same to the last bit. SIGINT and SIGTERM save at the end of the
    step and are then delivered.

    Raises InputError or MismatchError, before anything is trained, for whatever does not fit.
    """
    with distributed.process_group(device) as world:
        return _finetune(settings, RunFolder(Path(out)), world, resume=resume, force=force)


def _finetune(settings: FinetuneRecipe, folder: RunFolder, world: World, *, resume: bool, force: bool) -> Path:
    recipe, seed = settings.training, settings.run.seed
    state = load_state(folder.state, world.device) if resume else None
    if state is None and world.main:
        files.check_output(folder.path, force=force, directory=True)

    # What goes in: images, CLIP, mask, plan. Everything that cannot work ends here.
    precision = pick_precision(recipe.precision, world.device)
    if world.share(recipe.batch) < 2:
        raise InputError(f"training.batch = {recipe.batch} gives a process one image; BatchNorm needs two at least")
    source = open_dataset(settings.data.dataset, split="train", size=settings.data.size)
    dataset = Labelled(source, limit=settings.data.images, cache=settings.data.cache)
    clip = load_clip(settings.model.clip, settings.model.pretrained or None)
    mask = _mask(settings, folder, resuming=state is not None)
    encoder = clip.visual if state is not None else initial_image_encoder(clip, settings)
    frozen: list[str] = state["frozen"] if state is not None else plan_layers(settings)
    check_plan(frozen, encoder, settings.run.plan or str(folder.state))

    # The framework, its weights under the mask, its frozen layers without gradients.
    vocabulary = with_prompts(dataset.vocabulary, settings.model.framework, settings.model.options)
    seed_step(seed, -1)
    framework = registry.build(
        settings.model.framework,
        encoder=encoder,
        mean=clip.mean,
        std=clip.std,
        text=embed_vocabulary(clip, vocabulary),
        options=settings.model.options,
    )
    if state is not None:
        framework.load_state_dict(state["model"])
    if mask is not None:
        mask.apply(framework)
    to_device(framework, world.device)
    freeze(framework, frozen, norms=recipe.freeze_norms)
    if state is None and recipe.bn_recalibrate:
        recalibrate(framework, islice(stream(dataset, settings, world), recipe.bn_recalibrate), precision)

    # What the losses want beyond the data; the targets stays out of the framework and its checkpoint.
    targets = make_teacher_targets(settings, framework.target_requirements, clip, vocabulary, world, precision)

    def batches(start: int) -> Iterator[Batch]:
        """The batches from step `start` on."""
        found = stream(
            dataset,
            settings,
            world,
            start=start,
            requirements=framework.target_requirements,
            region_size=clip.image_size,
        )
        return found if targets is None else targets.attach(found, start)

    # The optimizer sees what may change and nothing else.
    train_mode(framework, frozen=frozen, norms=recipe.norms, freeze_norms=recipe.freeze_norms)
    optimizer = make_optimizer(framework, settings.optimizer)
    scaler = precision.scaler()
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    done, elapsed = (state["step"], state["elapsed"]) if state is not None else (0, 0.0)

    if world.main:
        if state is None:
            folder.begin(settings, environment(world.device, processes=world.size), force=True)
            if mask is not None:
                save_mask(folder.mask, mask)
        else:
            folder.rewind_log(done)
        console.say(_headline(settings, clip, mask, _frozen(framework, frozen), precision.name, done))
        warn_of_captions(dataset, framework.target_requirements, "model.grounding_weight=0")
    world.barrier()

    def snapshot(step: int) -> dict[str, Any]:
        """The state after `step` steps."""
        return {
            "step": step,
            "elapsed": elapsed,
            "frozen": frozen,
            "planned": planned,
            "model": framework.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }

    planned = state["planned"] if state is not None else not recipe.plan_after
    stages = [recipe.steps] if planned else [recipe.plan_after, recipe.steps]
    held = mask.held(optimizer, framework) if mask is not None else contextlib.nullcontext()
    title = f"finetune {settings.model.framework}"
    progressing = console.progress(title, recipe.steps, done=done)
    with folder.guarded(world.main), held, stopping() as stop, progressing as progress:
        for end in stages:
            steps = range(done, end)
            for step in train(
                distributed.parallel(framework, world),
                batches(done),
                optimizer,
                steps=steps,
                rate=lambda step: settings.schedule.factor(step, recipe.steps),
                precision=precision,
                scaler=scaler,
                clip_norm=settings.optimizer.clip_norm,
                mask=mask,
                world=world,
                seed=seed,
            ):
                done, elapsed = step.number, elapsed + step.seconds
                progress.advance(loss=step.loss)
                if world.main:
                    folder.append(_log_entry(step, recipe.batch, elapsed))
                stopped = world.any(stop.requested)
                if world.main and (stopped or (done % recipe.save_every == 0 and done < recipe.steps)):
                    save_state(folder.state, snapshot(done))
                if stopped:
                    world.barrier()
                    stop.now()
            if not planned:
                frozen, planned = _plan_now(settings, folder, framework, clip, world), True
                freeze(framework, frozen, norms=recipe.freeze_norms)
                train_mode(framework, frozen=frozen, norms=recipe.norms, freeze_norms=recipe.freeze_norms)
                drop_frozen(optimizer)

    if world.main:
        _finish(settings, folder, framework, clip, mask, frozen)
    world.barrier()
    return folder.path


def _mask(settings: FinetuneRecipe, folder: RunFolder, *, resuming: bool) -> Mask | None:
    """The mask of the run: from its file, or when resuming from the run's own copy."""
    if not settings.run.mask:
        return None
    return load_mask(folder.mask if resuming else settings.run.mask)


def _plan_now(settings: FinetuneRecipe, folder: RunFolder, framework: Framework, clip: Clip, world: World) -> list[str]:
    """Analyse the trunk as the first steps left it, write alpha.json, return what to freeze (OpenTrans sec. 6.1)."""
    from ovstrans.spectrum.analysis import analyze
    from ovstrans.spectrum.file import save_analysis

    frozen: list[str] = []
    if world.main:
        analysis = analyze(framework, freeze=settings.training.freeze, device="cpu", seed=settings.run.seed)
        analysis.model = clip.name
        save_analysis(folder.alpha, analysis)
        frozen = list(analysis.default_plan.frozen)
        console.say(f"plan: {len(frozen)} layers frozen from step {settings.training.plan_after} on ({folder.alpha})")
    return world.broadcast(frozen)


def _finish(
    settings: FinetuneRecipe, folder: RunFolder, framework: Framework, clip: Clip, mask: Mask | None, frozen: list[str]
) -> None:
    """Check the mask, write the checkpoint, drop the state."""
    if mask is not None and (broken := mask.violations(framework)):
        raise OvstransError(f"{broken[0][0]}: {broken[0][1]} masked weights are not zero after training")
    framework.eval()
    text = framework.text.to("cpu")
    save_checkpoint(
        folder.checkpoint,
        Checkpoint(
            framework=framework.name,
            options=framework.options,
            state={key: value.detach().cpu().contiguous() for key, value in framework.state_dict().items()},
            mask=mask,
            text_embeddings=text.embeddings,
            text_owner=text.owner,
            vocabulary=text.vocabulary,
            clip=clip.describe(),
            recipe=settings.to_table(),
            provenance={
                "created_by": f"ovstrans {__version__}",
                "data": settings.data.dataset,
                "steps": settings.training.steps,
                "init": settings.run.init,
                "seed": settings.run.seed,
                "frozen": frozen,
            },
            text_encoder=text_encoder(clip),
        ),
    )
    folder.end()
    console.say(f"wrote {folder.checkpoint}")


def _log_entry(step: Step, batch: int, elapsed: float) -> dict[str, Any]:
    return {
        "step": step.number,
        "loss": step.loss,
        **{f"loss/{name}": value for name, value in step.losses.items()},
        "lr": step.rate,
        "grad_norm": step.grad_norm if math.isfinite(step.grad_norm) else None,
        "images_per_second": round(batch / step.seconds, 2),
        "processor_seconds": round(step.processor, 3),
        "elapsed": round(elapsed, 3),
    }


def _frozen(framework: Framework, frozen: list[str]) -> str:
    """What does not train: the trunk where its framework keeps it so, else so many layers."""
    trains = any(parameter.requires_grad for parameter in framework.backbone.parameters())
    return f"{len(frozen) or 'no'} layers frozen" if trains else "trunk frozen"


def _headline(settings: FinetuneRecipe, clip: Clip, mask: Mask | None, frozen: str, precision: str, done: int) -> str:
    """One line on what is about to be trained."""
    parts = [f"{settings.model.framework} on {clip.name} ({settings.run.init} weights), {settings.data.dataset}"]
    if mask is None:
        parts.append("no mask")
    else:
        transfer = "" if mask.made_from(clip.weights_sha256) else ", transferred from other weights"
        parts.append(f"mask of {mask.sparsity:.1%} zeros{transfer}")
    parts += [frozen, precision]
    return (f"going on after step {done}: " if done else "") + ", ".join(parts)
