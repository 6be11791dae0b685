"""The part of `ovstrans bench` that runs targets on data: mIoU into their reports, pages of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ovstrans.costs.target import Target
    from ovstrans.datasets.sample import Dataset, Sample
    from ovstrans.reports.data import Evaluation


def evaluate_targets(
    found: Sequence[Target],
    work: Sequence[Mapping[str, Dataset]],
    reports: Sequence[dict[str, Any]],
    device: torch.device,
    asked: Evaluation,
) -> dict[str, str]:
    """Fill the reports' `datasets`, and draw pages of pictures and confusion for each of them.

    Under torchrun every process takes its share, all reports are the same, and rank 0 draws.

    Returns what is wrong with datasets that could not be evaluated, by their name, which the reports have as
    `failed`: of several datasets one with a fault does not stop the others. The fault of an only one is raised.
    """
    from ovstrans import console
    from ovstrans.datasets.drawing import choose_evenly
    from ovstrans.errors import InputError
    from ovstrans.evaluation.evaluate import evaluate, original_message
    from ovstrans.frameworks.registry import classifier_for
    from ovstrans.reports.pictures import Pages
    from ovstrans.training.distributed import process_group

    pages = Pages(asked.pages)
    faults: dict[str, str] = {}
    with process_group(device) as world:
        for target, title, mine, report in zip(found, _titles(found), work, reports, strict=True):
            for name, dataset in mine.items():
                if name in faults:  # which another target met
                    continue
                assert target.checkpoint is not None
                total = asked.count(dataset)
                chosen = choose_evenly(total, asked.show)
                seen: dict[int, Tensor] = {}
                text = classifier_for(target.checkpoint, asked.words(dataset), asked.names).to(world.device)
                framework: Any = target.module.to(world.device)
                with console.progress_bar() as progress:

                    def on_image(index: int, sample: Sample, prediction: Tensor) -> None:
                        if index in chosen:  # noqa: B023
                            seen[index] = prediction  # noqa: B023

                    try:
                        result = evaluate(
                            framework,
                            dataset,
                            text,
                            device=world.device,
                            inference=asked.inference(dataset),
                            limit=asked.limit,
                            denominator=asked.denominator,
                            panoptic=asked.panoptic,
                            on_image=on_image,
                            progress=progress,
                            task=f"evaluate {title} on {name}",
                        )
                        assert result.confusion is not None
                        pages.add_confusion(name, dataset, title, result.confusion)
                        report["datasets"][name] = result.to_json()
                    except InputError as error:  # on every rank, or on none
                        if not asked.several:
                            raise
                        faults[name] = original_message(error)
                framework.to("cpu")
                if name not in faults:
                    pages.add(name, dataset, title, _gathered(seen))
            failed = {name: faults[name] for name in mine if name in faults}
            if failed:
                report["failed"] = failed
        if world.main and asked.show:
            pages.save()
    return faults


def _gathered(seen: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Predictions by index, of all processes."""
    import torch

    from ovstrans.evaluation.evaluate import rank_and_world

    parts: list[Any] = [None] * rank_and_world()[1]
    if len(parts) == 1:
        return dict(seen)
    torch.distributed.all_gather_object(parts, dict(seen))
    return {index: prediction for part in parts for index, prediction in part.items()}


def _titles(found: Sequence[Target]) -> list[str]:
    """Short names for the columns of a picture: the last part of each path, where that tells them apart."""
    paths = [Path(target.name) for target in found]
    short = [path.parent.name or path.name if path.name == "checkpoint.safetensors" else path.name for path in paths]
    return short if len(set(short)) == len(short) else [target.name for target in found]
