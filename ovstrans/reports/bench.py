"""Bench: count what targets cost, evaluate those that have weights, and report both side by side.

What happens, in order: targets are loaded, datasets opened, costs counted, targets evaluated and drawn, and if asked
for latency is measured. Finished evaluations are kept on disk until all are done, see `reports.evaluations`. Under
torchrun all ranks evaluate their share and return equal reports; rank 0 alone counts, draws, and measures latency.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ovstrans.checkpoints.file import find_checkpoint
from ovstrans.costs.target import PAPER_SIZE, RUN_CHECKPOINT, Costs, Target, count_costs, load_target, parse_size
from ovstrans.datasets.catalog import find_vocabulary, open_dataset
from ovstrans.datasets.folder import FolderDataset
from ovstrans.datasets.label_counts import warn_of_labels
from ovstrans.datasets.sample import Dataset
from ovstrans.environment import environment, pick_device
from ovstrans.errors import InputError, MismatchError, counted
from ovstrans.evaluation.inference import Inference
from ovstrans.files import OUTPUT_DIR, check_output
from ovstrans.progress import ProgressCallback
from ovstrans.reports.evaluations import Scoring, UnfinishedWork, evaluate_targets, hash_weights
from ovstrans.reports.report import Report, load_reports
from ovstrans.training.distributed import process_group
from ovstrans.version import __version__
from ovstrans.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovstrans.masks.mask import Mask
    from ovstrans.spectrum.plan import FreezePlan

NONE, ALL = "none", "all"
"""Values of `data` besides datasets: nothing, and every published dataset that is found."""

logger = logging.getLogger(__name__)


def bench(
    targets: Any = None,
    *,
    data: str | Dataset | Sequence[str | Dataset] | None = None,
    data_root: Path | str | None = None,
    model: str | None = None,
    mask: Mask | Path | str | None = None,
    plan: FreezePlan | Path | str | None = None,
    settings: Sequence[str] = (),
    image_size: tuple[int, int] | int | str | None = None,
    batch: int = 1,
    counter: str = "torch",
    per_layer: bool = False,
    vocabulary: Vocabulary | Path | str | None = None,
    names: str = "auto",
    limit: int | None = None,
    denominator: str = "present",
    panoptic: bool = False,
    short_side: int | None = None,
    long_side: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    flip: bool = False,
    latency: bool = False,
    rounds: int = 10,
    warmup: int = 2,
    runtime: str = "auto",
    show: int = 4,
    pictures: Path | str | None = None,
    state: Path | str | None = None,
    resume: bool = False,
    device: torch.device | str = "auto",
    progress: ProgressCallback | None = None,
    on_incomplete: Callable[[list[Report]], None] | None = None,
    force: bool = False,
) -> Report | list[Report]:
    """Count parameters and multiply-accumulates of targets, with one counter for all, and evaluate them on datasets.

    Args:
        targets: One target or a list: a run, checkpoint, framework, recipe, open_clip model or report file, by name or
            path; or a run object, a `Checkpoint`, a `Report`. None for the run in `ovstrans-out/run`, or DeepLabV3 if
            there is none.
        data: Labelled data to evaluate on, one or several: `NAME[:SPLIT]`, `folder:PATH[:SPLIT]` or a dataset; "all"
            for every published dataset that is found, "none" to skip. None for the validation split of what each
            target was trained on.
        data_root: Folder of published datasets.
        model: CLIP of a framework or recipe.
        mask: Count targets without weights under this mask.
        plan: Count targets without weights under this freeze plan.
        settings: `KEY=VALUE` pairs that replace values of a recipe, or options of a framework.
        image_size: Height and width of the images to count, also as "800x1216"; None for the size of the data, or
            800x1216.
        batch: Number of images to count at once.
        counter: "torch" (exact), or "fvcore" or "thop-rules", as the literature counts.
        per_layer: Keep the figures of every layer in the reports.
        vocabulary: Class names to count targets without weights with, and to evaluate the others with.
        names: Names of a class that go into prompts; "auto" for the framework's own choice.
        limit: Evaluate on the first so many images.
        denominator: Classes that enter mIoU, "present" or "union".
        panoptic: Also compute panoptic quality, if data and framework have segments.
        short_side: Resize images to this short side, 0 for their own; None for the published size.
        long_side: Resize images to at most this long side.
        window: Side of square windows to score images in.
        stride: Distance of windows; None for 2/3 of `window`.
        flip: Average the scores with those of the mirrored image.
        latency: Measure time, memory and energy of a forward pass.
        rounds: Timed passes of each arm.
        warmup: Passes before them.
        runtime: What skips zeros in the latency of masked models: "auto", "sparse", "csr" or "dense"; see
            `costs.latency.measure_latency`.
        show: Number of images on the pages of pictures.
        pictures: Folder for pages of predictions and confusion matrices; None for no pictures.
        state: Folder that keeps finished evaluations until all are done; None keeps none.
        resume: Go on after the evaluations that an interrupted call left in `state`.
        device: Where to evaluate.
        progress: Told of the images evaluated.
        on_incomplete: Called, if an error or an interrupt ends the work before all is done, with the reports as far as
            they are: what is missing is in `Report.incomplete`. Not called if nothing was evaluated or measured.
        force: Allow `pictures` to be a folder that is not empty.

    Returns:
        A `Report` for a single target; a list of them for a list of targets, or for a file that holds several.

    Raises:
        InputError: If a target, a dataset or a setting does not exist or does not fit. If one of several datasets
            cannot be evaluated, the reports have the reason as `failed` instead.
    """
    several = isinstance(targets, Sequence) and not isinstance(targets, str)
    chosen = list(targets) if several else [_default_target() if targets is None else targets]
    size = parse_size(image_size)
    specs: list[Any] = [data] if isinstance(data, str) or hasattr(data, "vocabulary") else list(data or ())
    scoring = Scoring(
        vocabulary=find_vocabulary(str(vocabulary)) if isinstance(vocabulary, (str, Path)) else vocabulary,
        names=names,
        inference=Inference(short_side or None, long_side, window, stride, flip),
        keep_size=short_side is None and long_side is None,
        denominator=denominator,
        panoptic=panoptic,
        limit=limit,
        show=show if pictures is not None else 0,
        tolerant=len(specs) > 1 or ALL in specs,
    )
    if len(specs) > 1 and {NONE, ALL} & {spec for spec in specs if isinstance(spec, str)}:
        raise InputError(f"`data={NONE if NONE in specs else ALL}`: stands for itself; leave out the other `data`")
    folder = None if pictures is None else check_output(pictures, force=force, directory=True, option="pictures")
    where = pick_device(device)
    if resume and state is None:
        raise InputError("`resume=True`: needs the folder of the unfinished evaluations; give `state` too")
    unfinished = UnfinishedWork(None if state is None else Path(state), resume)

    counted_with = vocabulary
    if counted_with is None:
        first = next((spec for spec in specs if spec not in (NONE, ALL)), None)
        counted_with = getattr(first, "vocabulary", first)
    building: dict[str, Any] = {"model": model, "mask": mask, "plan": plan, "vocabulary": counted_with}
    building["settings"] = settings
    written, loaded = _load(chosen, building, "cpu" if counter == "fvcore" else "meta")
    work = _open_datasets(loaded, specs, scoring, data_root)
    size = size or _first_size(work, scoring) or PAPER_SIZE
    fresh: list[Report] = []

    def in_order() -> list[Report]:
        made = dict(zip(loaded, ([report] for report in fresh), strict=False)) | written
        return [report for number in range(len(chosen)) for report in made.get(number, ())]

    with process_group(where) as world:
        try:
            if world.main:
                _warn_of_labels(work, limit)
            described = environment(str(where))
            for target in loaded.values():
                costs = count_costs(target, size, counter=counter, batch=batch) if world.main else None
                costs = costs if per_layer or costs is None else costs.without_layers()
                fresh.append(Report(target.describe(), described, world.broadcast(cast(Costs, costs))))
            evaluate_targets(list(loaded.values()), work, fresh, world, scoring, folder, unfinished, progress)
            for number, target, report in zip(loaded, loaded.values(), fresh, strict=True):
                if latency and world.main:
                    weighted = target
                    if target.checkpoint is None:
                        weighted = load_target(chosen[number], **building, device="cpu")
                    timing: dict[str, Any] = {"batch": batch, "rounds": rounds, "warmup": warmup, "runtime": runtime}
                    _measure(weighted, report, size, where, unfinished, **timing)
        except BaseException as error:
            if world.main and on_incomplete is not None and any(each.datasets or each.latency for each in fresh):
                _mark_incomplete(fresh, work, error, latency=latency)
                on_incomplete(in_order())
            raise
    if world.main and not any(report.failed for report in fresh):
        unfinished.remove()
    reports = in_order()
    return reports if several or len(reports) > 1 else reports[0]


def _mark_incomplete(
    reports: Sequence[Report], work: Sequence[Mapping[str, Dataset]], error: BaseException, *, latency: bool
) -> None:
    """Note in the reports what is missing, and why."""
    reason = "interrupted" if not isinstance(error, Exception) else str(error) or type(error).__name__
    for report, own in zip(reports, work, strict=False):
        missing = [name for name in own if name not in report.datasets and name not in report.failed]
        missing += ["latency"] if latency and report.latency is None else []
        report.incomplete = dict.fromkeys(missing, reason)


def _default_target() -> str:
    run = OUTPUT_DIR / "run"
    if (run / RUN_CHECKPOINT).exists():
        return str(run)
    logger.info(
        "no finished run at %s; counting the framework deeplabv3 (name a target, or run `ovstrans finetune`)", run
    )
    return "deeplabv3"


def _load(
    targets: Sequence[Any], building: Mapping[str, Any], device: str
) -> tuple[dict[int, list[Report]], dict[int, Target]]:
    """Read the reports among the targets and load the others, each by its position."""
    written: dict[int, list[Report]] = {}
    for number, target in enumerate(targets):
        place = getattr(target, "path", target)
        if isinstance(target, Report):
            written[number] = [target]
        elif isinstance(place, (str, Path)) and Path(place).suffix == ".json" and Path(place).is_file():
            written[number] = load_reports(place)
        elif isinstance(place, (str, Path)) and Path(place).is_dir() and not (Path(place) / RUN_CHECKPOINT).exists():
            find_checkpoint(place)  # the error says how to come by one
    loaded = {
        number: load_target(target, **building, device=device)
        for number, target in enumerate(targets)
        if number not in written
    }
    given = [name for name in ("model", "mask", "plan") if building[name] is not None]
    if given and all(target.checkpoint is not None for target in loaded.values()):
        raise InputError(f"`{given[0]}`: is for frameworks, recipes and CLIP models; a checkpoint carries its own")
    return written, loaded


def _open_datasets(
    loaded: Mapping[int, Target], specs: Sequence[str | Dataset], scoring: Scoring, data_root: Path | str | None
) -> list[dict[str, Dataset]]:
    """Open, for each target, the data to evaluate it on, by the name that reports give it."""
    opened: dict[tuple[str, int | None], Dataset] = {}
    work: list[dict[str, Dataset]] = []
    chosen = _find_published(data_root) if ALL in specs else specs
    all_trained = all(target.checkpoint is not None for target in loaded.values())
    for target in loaded.values():
        own: dict[str, Dataset] = {}
        work.append(own)
        if target.checkpoint is None or NONE in chosen:
            continue
        trained: Mapping[str, Any] = target.checkpoint.recipe.get("data", {})
        side = trained.get("size")
        for spec in chosen or [str(trained.get("dataset", "scenes")).removesuffix(":train")]:
            try:
                if isinstance(spec, str):
                    if (spec, side) not in opened:
                        opened[spec, side] = open_dataset(spec, split="val", size=side, data_root=data_root)
                    dataset = opened[spec, side]
                else:
                    dataset = spec
                scoring.vocabulary_on(dataset)
            except InputError as error:
                if chosen or (all_trained and isinstance(error, MismatchError)):
                    raise
                logger.warning("%s: not evaluated on what it records (%s); say on what with `data`", target.name, error)
                continue
            name = f"{dataset.name}:{dataset.split}"
            own[str(spec) if name in own else name] = dataset
    if chosen and NONE not in chosen and not any(work):
        raise InputError(f"`data={chosen[0]}`: nothing to evaluate, no target has weights; name a run or a checkpoint")
    return work


def _warn_of_labels(work: Sequence[Mapping[str, Dataset]], limit: int | None) -> None:
    """Log what makes scores on the datasets say little."""
    for dataset in {id(dataset): dataset for own in work for dataset in own.values()}.values():
        if isinstance(dataset, FolderDataset) or len(dataset.vocabulary) == 1:
            warn_of_labels(dataset, limit)


def _find_published(data_root: Path | str | None) -> list[str]:
    """Return the names of the published datasets whose validation split is found and complete."""
    from ovstrans.datasets.published.dataset import PublishedDataset
    from ovstrans.datasets.published.registry import PUBLISHED, format_roots, locate_dataset, resolve_roots

    roots, found = resolve_roots(data_root), []
    for name, info in PUBLISHED.items():
        if "val" not in info.splits:
            continue
        try:
            location = locate_dataset(info, "val", roots)
            if location is not None:
                PublishedDataset(location)
                found.append(name)
        except InputError as error:
            logger.warning("%s: left out (%s)", name, error)
    if not found:
        raise InputError(
            f"`data={ALL}`: no published dataset in {format_roots(roots)}; give `data_root` (`ovstrans data list` says "
            "where datasets were looked for)"
        )
    return found


def _first_size(work: Sequence[Mapping[str, Dataset]], scoring: Scoring) -> tuple[int, int] | None:
    """Return the size of the first image to evaluate; if datasets may fail, of the first that can be read."""
    for dataset in (dataset for own in work for dataset in own.values() if len(dataset)):
        try:
            height, width = dataset[0].image.shape[-2:]
        except InputError:
            if not scoring.tolerant:
                raise
        else:
            return int(height), int(width)
    return None


def _measure(
    target: Target,
    report: Report,
    image_size: tuple[int, int],
    device: torch.device,
    unfinished: UnfinishedWork,
    *,
    batch: int,
    rounds: int,
    warmup: int,
    runtime: str,
) -> None:
    """Measure the latency of a target that has weights, and fill it in."""
    from ovstrans.costs.latency import measure_latency

    key: dict[str, Any] = {}
    if unfinished.folder is not None:
        key = {"target": hash_weights(target), "size": list(image_size), "device": str(device), "batch": batch}
        key |= {"rounds": rounds, "warmup": warmup, "runtime": runtime, "version": __version__}
        report.latency = unfinished.load_latency(key)
        if report.latency is not None:
            return
    logger.info("measure %s: %s", target.name, counted(rounds, "round"))
    report.latency = measure_latency(
        target.module,
        image_size,
        batch=batch,
        mask=target.mask,
        device=device,
        rounds=rounds,
        warmup=warmup,
        runtime=runtime,
    )
    if target.mask is not None:
        logger.info("%s: %s", target.name, "; ".join(f"{name}: {arm.how}" for name, arm in report.latency.arms.items()))
    load, cores = report.latency.load or 0.0, os.cpu_count() or 1
    if load > cores:
        logger.warning("%s: timed while others kept the machine busy (load %.1f on %d cores)", target.name, load, cores)
    unfinished.keep_latency(key, report.latency)
