"""`ovstrans bench`: params, multiply-accumulates, mIoU and speed of any number of targets, side by side.

The options are declared in `cli.bench_options`; the work is `reports.bench.bench`, and `reports.lock` for the lock of
costs, and `costs.published` for the paper's tables.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from ovstrans.cli import bench_options as options
from ovstrans.cli import common
from ovstrans.cli import inference_options as inference
from ovstrans.cli.bench_options import BARE, MODES, OPTIONAL_VALUES

if TYPE_CHECKING:
    from ovstrans.reports.lock import LockResult
    from ovstrans.reports.report import Report

_DENOMINATORS = {"present": "that occur in the ground truth (present)", "union": "that occur or are predicted (union)"}
_MOST_WITH_CHANGES = 4
"""Largest number of reports whose differences are shown in the terminal."""


class BenchCommand(TyperCommand):
    """The command `bench`: some options need no value, and an option without effect is refused."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments as click does, once every option without a value has got its default one."""
        return super().parse_args(ctx, add_values(args, OPTIONAL_VALUES))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; InputError for an option that has no effect in the chosen mode."""
        from ovstrans.errors import InputError

        for selector, (name, accepted) in MODES.items():
            if not ctx.params[selector]:
                continue
            for parameter in self.params:
                source = ctx.get_parameter_source(parameter.name)
                if parameter.name not in accepted and source is not None and source.name != "DEFAULT":
                    raise InputError(f"{parameter.opts[0]}: does not apply to {name}; leave it out")
            break
        return super().invoke(ctx)


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
    details: options.Details = False,
    paper: options.Paper = False,
    vocabulary: options.VocabularyName = None,
    names: inference.Names = "auto",
    data: options.Data = None,
    limit: options.Limit = None,
    denominator: options.Denominator = "present",
    panoptic: options.Panoptic = False,
    per_class: options.PerClass = False,
    short_side: inference.ShortSide = None,
    long_side: inference.LongSide = None,
    window: options.Window = None,
    stride: inference.Stride = None,
    flip: inference.Flip = False,
    latency: options.Latency = False,
    rounds: options.Rounds = 10,
    warmup: options.Warmup = 2,
    runtime: options.Runtime = "auto",
    check: options.Check = None,
    update: options.Update = None,
    tolerance: options.Tolerance = "0",
    show: options.Show = 4,
    pictures: options.Pictures = None,
    resume: options.Resume = False,
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

    One MAC (a multiplication with its addition) is two FLOPs. Effective MACs leave out what the mask holds at zero,
    layer by layer. Frameworks, recipes and CLIP models are counted without weights.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console
    from ovstrans.errors import InputError
    from ovstrans.training.distributed import is_worker_rank

    worker = is_worker_rank()
    console.set_quiet(quiet or worker)
    if worker and (paper or check is not None or update is not None):
        return  # rank 0 does it alone
    outputs = Outputs(markdown=markdown, csv=csv, json=json, plot=plot, pictures=pictures, update=update, check=check)
    outputs.refuse_conflicts(force=force or worker)  # files that rank 0 writes meanwhile are no obstacle
    if check is not None or update is not None:
        if counter != "torch":
            raise InputError(f"`counter={counter}`: a lock is counted by torch alone; leave it out")
        spec: dict[str, Any] = {"image_size": image_size, "batch": batch, "model": model, "mask": mask, "plan": plan}
        spec |= {"settings": tuple(settings or ()), "vocabulary": vocabulary}
        _run_lock(targets or [], check, update, tolerance, spec, json)
        return
    if paper:
        if targets:
            raise InputError(f"--paper: counts the paper's own models, not {targets[0]}; leave out one of the two")
        _show_paper(outputs)
        return

    from ovstrans.reports.bench import bench as run
    from ovstrans.reports.report import reports_to_json

    folder, state = _find_places(pictures, plot, show)

    def keep(found: list[Report]) -> None:
        """Show what is done of a bench that an error or an interrupt ends."""
        common.finish(
            lambda: _show(found, outputs, details=details, per_layer=per_layer, per_class=per_class),
            lambda: _write_tables(found, outputs, details=details),
            lambda: common.emit_json(json, reports_to_json(found), force=True),
        )
        if state is not None:
            console.say("unfinished; the same command with --resume goes on after what is done")

    with console.progress_bar() as progress:
        found = run(
            targets,
            data=data,
            data_root=data_root,
            model=model,
            mask=mask,
            plan=plan,
            settings=settings or (),
            image_size=image_size,
            batch=batch or 1,
            counter=counter,
            per_layer=per_layer or plot is not None,
            vocabulary=vocabulary,
            names=names,
            limit=limit,
            denominator=denominator,
            panoptic=panoptic,
            short_side=short_side,
            long_side=long_side,
            window=window,
            stride=stride,
            flip=flip,
            latency=latency,
            rounds=rounds,
            warmup=warmup,
            runtime=runtime,
            show=show,
            pictures=folder,
            state=state,
            resume=resume,
            device=device,
            progress=progress,
            on_incomplete=None if worker else keep,
            force=force or worker or pictures is None,
        )
    if worker:
        return
    reports = found if isinstance(found, list) else [found]
    common.finish(  # results first, pictures last
        lambda: _show(reports, outputs, details=details, per_layer=per_layer, per_class=per_class),
        lambda: _write_tables(reports, outputs, details=details),
        lambda: common.emit_json(json, reports_to_json(reports), force=True),
        *([] if plot is None else [lambda: _plot(reports, folder or Path(), plot)]),
        lambda: _raise_failed(reports),
    )


def _find_places(pictures: Path | None, plot: str | None, show: int) -> tuple[Path | None, Path | None]:
    """Return the folder for pictures, and that for unfinished evaluations; None where nothing can be written.

    Raises:
        InputError: Pictures or plots in the folder were asked for, and it cannot be written.
    """
    from ovstrans import console, files
    from ovstrans.errors import InputError

    folder: Path | None = pictures or files.OUTPUT_DIR / "bench"
    state: Path | None = files.OUTPUT_DIR / "bench-unfinished"
    if pictures is None and (show or plot == BARE):
        try:
            files.check_output(str(folder), force=True, directory=True, option="pictures")
        except InputError as error:
            if plot == BARE:
                raise
            console.say(f"no pictures: {common.in_flags(str(error))}")
            folder = None
    try:
        files.check_output(str(state), force=True, directory=True)
    except InputError:
        state = None
    return folder, state


@dataclass(frozen=True)
class Outputs:
    """Destinations of the results: a path, "-" for stdout, None for nowhere. Fields are named as the options."""

    markdown: str | None
    csv: str | None
    json: str | None
    plot: str | None
    pictures: Path | None
    update: str | None
    check: Path | None

    def refuse_conflicts(self, *, force: bool) -> None:
        """Refuse, before any work, an output that cannot be written, and two outputs in one place."""
        from ovstrans import files
        from ovstrans.errors import InputError
        from ovstrans.figures import picture_path

        common.check_json(self.json, force=force)
        for name in ("markdown", "csv", "plot"):
            destination = getattr(self, name)
            if destination is not None and destination != BARE:
                path = picture_path(destination) if name == "plot" else destination
                files.check_output(path, force=force, option=name)
        places: dict[Path | str, str] = {}
        for name in ("markdown", "csv", "json", "plot", "pictures", "update", "check"):
            destination = getattr(self, name)
            if destination is None or (destination == BARE and name in ("plot", "update")):
                continue
            place = BARE if destination == BARE else Path(destination).resolve()
            if place in places and place == BARE:
                raise InputError(f"`{places[place]}` and `{name}`: one at a time on stdout; give a file for the others")
            if place in places and {places[place], name} != {"check", "update"}:
                raise InputError(f"`{places[place]}` and `{name}`: both are {destination}; give each a file of its own")
            places[place] = name

    @property
    def to_terminal(self) -> bool:
        """True if stdout is free for the table that people read."""
        return BARE not in (self.markdown, self.csv, self.json)

    def write_tables(
        self,
        columns: Sequence[str],
        lines: Sequence[Sequence[str]],
        plain: Sequence[Sequence[str]],
        words: Collection[str] = (),
    ) -> None:
        """Write a table as Markdown (columns and lines) and its plain values as CSV, if they were asked for."""
        from ovstrans import console, files
        from ovstrans.reports.tables import format_csv, format_markdown

        texts: list[tuple[str, str]] = []
        if self.markdown is not None:
            texts.append((self.markdown, format_markdown(columns, lines, words)))
        if self.csv is not None:
            texts.append((self.csv, format_csv(plain)))
        for destination, text in texts:
            if destination == BARE:
                console.show(text)
            else:
                files.write_text(Path(destination), text)
                console.say(f"wrote {destination}")


def add_values(arguments: Sequence[str], optional: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Insert "-" behind every option that was given without a value.

    The word after such an option is its value if it is "-" or has one of the option's suffixes; anything else is the
    next argument. `--csv=ANYTHING` always has a value.

    Args:
        arguments: Words of the command line.
        optional: Option whose value may be left out to the suffixes of its values.
    """
    result: list[str] = []
    for number, argument in enumerate(arguments):
        result.append(argument)
        if argument == "--":
            return [*result, *arguments[number + 1 :]]
        if argument in optional:
            following = arguments[number + 1] if number + 1 < len(arguments) else ""
            if following != BARE and not following.lower().endswith(optional[argument]):
                result.append(BARE)
    return result


def _write_tables(reports: Sequence[Report], outputs: Outputs, *, details: bool) -> None:
    from ovstrans.reports.tables import make_csv_table, make_table

    outputs.write_tables(*make_table(reports, details=details), make_csv_table(reports))


def _show(reports: Sequence[Report], outputs: Outputs, *, details: bool, per_layer: bool, per_class: bool) -> None:
    """Show the reports side by side, and tables of layers and classes if asked for; nothing if stdout is taken."""
    from ovstrans import console
    from ovstrans.reports.report import shorten_names
    from ovstrans.reports.tables import (
        LAYER_COLUMNS,
        compare_reports,
        make_class_table,
        make_layer_table,
        make_table,
    )

    if not outputs.to_terminal:
        return
    _, lines = make_table(reports, changes=len(reports) <= _MOST_WITH_CHANGES, details=details)
    names = shorten_names([report.name for report in reports])
    hidden = 0 if details else sum(not row.main for row in compare_reports(reports))
    console.table("bench", ["", *names], lines, caption=_caption(reports, hidden), split=True)
    for report in reports if per_layer else []:
        table = make_layer_table(report)
        console.table(f"layers of {report.name}", LAYER_COLUMNS, table, words=("component",), optional=("share",))
    for name in dict.fromkeys(name for report in reports for name in report.datasets) if per_class else []:
        result = next(report.datasets[name] for report in reports if name in report.datasets)
        starred = "; * novel" if any(each.novel for each in result.per_class) else ""
        classes = common.counted(result.num_classes, "class", "classes")
        caption = f"mIoU over {classes} ({result.denominator}){starred}"
        console.table(f"classes of {name}", *make_class_table(reports, name), caption=caption, split=True)


def _caption(reports: Sequence[Report], hidden: int) -> str:
    """Return what the figures are of, and how many more there are."""
    sizes = dict.fromkeys(report.flops.image_size for report in reports)
    counters = dict.fromkeys(report.flops.counter for report in reports)
    batches = dict.fromkeys(report.flops.batch for report in reports)
    if len(sizes) == len(batches) == 1:
        (height, width), batch = next(iter(sizes)), next(iter(batches))
        parts = [f"{common.counted(batch, 'image')} of {height}x{width}, counter {', '.join(counters)}"]
    else:
        parts = ["MACs of different image sizes or batches do not compare"]
    parts.append("1 MAC = 2 FLOPs")
    bare = any(report.target.kind == "model" for report in reports)
    parts.append(
        f"total params leave out CLIP's text encoder{', and of a CLIP model its pooling head' if bare else ''}"
    )
    ways = sorted({result.denominator for report in reports for result in report.datasets.values()})
    if ways:
        parts.append(f"mIoU over classes {' or '.join(_DENOMINATORS.get(way, way) for way in ways)}")
    parts += [
        f"incomplete: {report.name} lacks {', '.join(report.incomplete)}" for report in reports if report.incomplete
    ]
    if hidden:
        parts.append(f"{common.counted(hidden, 'more figure')} with --details")
    return "; ".join(parts)


def _plot(reports: Sequence[Report], folder: Path, plot: str) -> None:
    from ovstrans import console
    from ovstrans.reports.plots import plot_reports

    for path in plot_reports(reports, folder=folder, page=None if plot == BARE else plot):
        console.say(f"wrote {path}")


def _raise_failed(reports: Sequence[Report]) -> None:
    """Name what could not be evaluated or drawn, the last as the error that the command ends with."""
    from ovstrans import console
    from ovstrans.errors import InputError

    failed = {name: reason for report in reports for name, reason in report.failed.items()}
    lines = [f"{name}: not evaluated ({reason})" for name, reason in failed.items()]
    lines += dict.fromkeys(f"pictures left out: {each.undrawn}" for each in reports if each.undrawn)
    for line in lines[:-1]:
        console.error(line)
    if lines:
        raise InputError(lines[-1])


def _run_lock(
    targets: Sequence[str],
    check: Path | None,
    update: str | None,
    tolerance: str,
    spec: Mapping[str, Any],
    json: str | None,
) -> None:
    """Check or update the lock; CheckFailed if a count changed."""
    from ovstrans import console
    from ovstrans.errors import CheckFailed, InputError
    from ovstrans.reports.lock import DEFAULT_LOCK, check_lock, update_lock

    path = check or DEFAULT_LOCK
    if update is not None and update != BARE:
        if check is not None and Path(update) != check:
            raise InputError(f"`update={update}`: `check` names another lock, {check}; name one")
        path = Path(update)
    with console.progress_bar() as progress:
        if update is not None:
            result = update_lock(path, targets, progress=progress, **spec)
        else:
            result = check_lock(path, targets, tolerance=tolerance, progress=progress, **spec)
    if json != BARE:
        _show_changes(result)
    common.emit_json(json, result.to_json(), force=True)
    checked, changed = common.counted(len(result.targets), "target"), common.counted(len(result.changes), "count")
    if update is not None:
        console.say(f"wrote {path}: {common.counted(result.total, 'target')}, {changed} changed")
    elif result.changes:
        raise CheckFailed(
            f"{path}: {changed} of {len(result.changed_targets)} of {checked} changed; if that is meant: "
            f"ovstrans bench --check {path} --update"
        )
    else:
        console.say(f"{path}: {checked}, no count changed")


def _show_changes(result: LockResult) -> None:
    from ovstrans import console

    for target in result.changed_targets:
        console.show(target)
        for change in result.changes:
            if change.target == target:
                console.show(f"  {change}")


def _show_paper(outputs: Outputs) -> None:
    """Show the costs that OpenTrans prints, computed anew."""
    from ovstrans import console
    from ovstrans.costs.published.rows import PAPER_WORDS, paper_json, paper_notes, paper_rows, paper_table

    rows = paper_rows()
    columns, lines = paper_table(rows)
    table = paper_json(rows)
    plain = [list(table["rows"][0]), *([_plain(value) for value in row.values()] for row in table["rows"])]
    outputs.write_tables(columns, lines, plain, PAPER_WORDS)
    if outputs.to_terminal:
        console.table("costs in OpenTrans' Tables 1 and 2; 1 of its FLOPs is 1 MAC", columns, lines, words=PAPER_WORDS)
        for note in paper_notes(rows):
            console.show(f"- {note}")
    common.emit_json(outputs.json, table, force=True)


def _plain(value: object) -> str:
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)
