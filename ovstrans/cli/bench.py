"""`ovstrans bench`: params, multiply-accumulates, mIoU and speed of any number of targets, side by side.

Here is what happens, in order; the options are in `bench_options`, data in `bench_data`, evaluation in
`bench_evaluate`, locks in `bench_lock`, what is shown in `bench_show`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovstrans.cli import bench_options as options
from ovstrans.cli import common
from ovstrans.cli import inference_options as looking
from ovstrans.cli.bench_options import BenchCommand
from ovstrans.files import OUTPUT_DIR

if TYPE_CHECKING:
    from ovstrans.costs.target import Target
    from ovstrans.reports.request import Request

COMMAND_CLASS = BenchCommand


def bench(
    targets: options.Targets = None,
    model: options.Model = None,
    mask: options.Mask = None,
    plan: options.Plan = None,
    settings: options.Settings = None,
    image_size: options.ImageSize = None,
    batch: options.Batch = None,
    counter: options.Counter = "torch",
    per_layer: options.PerLayer = False,
    paper: options.Paper = False,
    vocabulary: options.VocabularyName = None,
    names: looking.Names = "auto",
    data: options.Data = None,
    limit: options.Limit = None,
    denominator: options.Denominator = "present",
    panoptic: options.Panoptic = False,
    per_class: options.PerClass = False,
    short_side: looking.ShortSide = None,
    long_side: looking.LongSide = None,
    window: options.Window = None,
    stride: looking.Stride = None,
    flip: looking.Flip = False,
    latency: options.Latency = False,
    rounds: options.Rounds = 10,
    warmup: options.Warmup = 2,
    check: options.Check = None,
    update: options.Update = None,
    tolerance: options.Tolerance = "0",
    show: options.Show = 4,
    pictures: options.Pictures = None,
    plot: options.Plot = None,
    markdown: options.Markdown = None,
    csv: options.Csv = None,
    data_root: common.DataRoot = None,
    json: common.Json = None,
    device: common.Device = "auto",
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Count parameters and multiply-accumulates, and measure mIoU, with one counter for all targets.

    One MAC (a multiplication with its addition) is two FLOPs. Effective MACs leave out what the mask
    holds at zero, layer by layer. Frameworks, recipes and CLIP models are counted without weights.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console, files
    from ovstrans.cli import bench_lock, bench_paper
    from ovstrans.cli.bench_plot import check_plot, save_plots
    from ovstrans.cli.bench_show import Outputs
    from ovstrans.errors import InputError
    from ovstrans.reports.data import ALL, NONE, Evaluation, first_size, open_data, show_classes
    from ovstrans.reports.evaluation import evaluate_targets
    from ovstrans.reports.measure import measure_targets
    from ovstrans.reports.request import Request, parse_size
    from ovstrans.training.distributed import is_worker_rank

    follows = is_worker_rank()
    console.set_quiet(quiet or follows)
    if follows and (paper or check is not None or update is not None):
        return  # counted, shown and written by rank 0 alone
    force = force or follows  # what rank 0 writes meanwhile is in nobody's way
    place = common.pick_device(device)
    first = next((spec for spec in data or [] if spec not in (NONE, ALL)), None)
    size = parse_size(image_size)
    asked: dict[str, Any] = {
        "image_size": size,
        "batch": batch,
        "model": model,
        "mask": None if mask is None else str(mask),
        "plan": None if plan is None else str(plan),
        "settings": tuple(settings) if settings else None,
        "vocabulary": vocabulary or first,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    if check is not None or update is not None:
        if counter != "torch":
            raise InputError(f"--counter {counter}: a lock is counted by torch alone; leave it out")
        bench_lock.run(targets or [], asked, check, update, tolerance=tolerance, json=json, force=force)
        return
    outputs = Outputs.checked(markdown=markdown, csv=csv, json=json, force=force)
    if paper:
        bench_paper.run(targets or [], outputs)
        return
    page = check_plot(plot, force=force)
    pages = OUTPUT_DIR / "bench"
    if pictures is not None:
        pages = files.check_output(pictures, force=force, directory=True, option="pictures")
    evaluation = Evaluation(
        data=tuple(data or ()),
        root=data_root,
        vocabulary=vocabulary,
        names=names,
        short_side=short_side,
        long_side=long_side,
        window=window,
        stride=stride,
        flip=flip,
        denominator=denominator,
        panoptic=panoptic,
        limit=limit,
        show=show,
        pages=pages,
    )
    requests = [Request(name, **{"image_size": options.PAPER_SIZE, **asked}) for name in targets or _default_targets()]
    written, found = _open(requests, counter)
    work = open_data(list(found.values()), evaluation)
    size = size or first_size(work, evaluation) or options.PAPER_SIZE

    from ovstrans.reports.report import cost_report, together

    layers = per_layer or plot is not None
    fresh = {
        number: {"datasets": {}}
        if follows  # which evaluates with rank 0, and counts nothing
        else cost_report(target, size, counter=counter, per_layer=layers, batch=batch or 1, device=str(place))
        for number, target in found.items()
    }
    faults = evaluate_targets(list(found.values()), work, list(fresh.values()), place, evaluation)
    if follows:
        return
    if latency:
        pairs = ((requests[number], found[number], report) for number, report in fresh.items())
        measure_targets(pairs, size, place, rounds=rounds, warmup=warmup)
    reports = [report for number in range(len(requests)) for report in written.get(number) or [fresh[number]]]
    if plot is not None:
        save_plots(reports, pages, page)
    outputs.show(reports, per_layer=per_layer)
    if per_class and outputs.to_terminal:
        show_classes(reports)
    common.emit_json(json, together(reports), force=True)
    _tell(faults)


def _tell(faults: Mapping[str, str]) -> None:
    """What is wrong with datasets, by name: a line each, the last of them the error that the command ends with."""
    from ovstrans import console
    from ovstrans.errors import InputError

    lines = [f"{name}: not evaluated ({fault})" for name, fault in faults.items()]
    for line in lines[:-1]:
        console.error(line)
    if lines:
        raise InputError(lines[-1])


def _default_targets() -> list[str]:
    from ovstrans import console

    run = OUTPUT_DIR / "run"
    if (run / "checkpoint.safetensors").exists():
        return [str(run)]
    console.say(
        f"no finished run at {run}; counting the framework deeplabv3 (name a target, or run `ovstrans finetune`)"
    )
    return ["deeplabv3"]


def _open(requests: Sequence[Request], counter: str) -> tuple[dict[int, list[dict[str, Any]]], dict[int, Target]]:
    """By their number among the requests: the reports that were written earlier, and the targets to count."""
    from ovstrans.errors import InputError
    from ovstrans.reports.report import load_reports
    from ovstrans.training.run_folder import RunFolder

    written, found = {}, {}
    for number, request in enumerate(requests):
        path = Path(request.name)
        if path.suffix == ".json" and path.is_file():
            written[number] = load_reports(path)
        elif path.is_dir():
            RunFolder(path).require_checkpoint()
    for number, request in enumerate(requests):
        if number not in written:
            found[number] = request.open(device="cpu" if counter == "fvcore" else "meta")
    first = requests[0]
    given = [f"--{name}" for name in ("model", "mask", "plan") if getattr(first, name) is not None]
    if given and all(target.checkpoint is not None for target in found.values()):
        raise InputError(f"{given[0]}: is for frameworks, recipes and CLIP models; a checkpoint carries its own")
    return written, found
