"""ovstrans makes open-vocabulary segmentation cheap: prune CLIP once, transfer the mask, count the costs.

Everything that the commands do is here as a function or class, with keywords named as the options are. They return
dataclasses, report progress through a `progress` callback and print nothing; notices go to the logger "ovstrans".
Names are imported on first use, so that `import ovstrans` stays light.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ovstrans.version import __version__

if TYPE_CHECKING:
    from ovstrans.checkpoints.file import Checkpoint as Checkpoint
    from ovstrans.checkpoints.file import load_checkpoint as load_checkpoint
    from ovstrans.clip.catalog import list_models as list_models
    from ovstrans.clip.load import Clip as Clip
    from ovstrans.clip.load import load_clip as load_clip
    from ovstrans.datasets.catalog import list_datasets as list_datasets
    from ovstrans.datasets.catalog import open_dataset as open_dataset
    from ovstrans.datasets.check import check_dataset as check_dataset
    from ovstrans.datasets.published.prepare import prepare_dataset as prepare_dataset
    from ovstrans.datasets.show import show_dataset as show_dataset
    from ovstrans.interop.export import export as export
    from ovstrans.interop.inspect import inspect as inspect
    from ovstrans.masks.file import load_mask as load_mask
    from ovstrans.masks.mask import Mask as Mask
    from ovstrans.pruning.prune import prune as prune
    from ovstrans.reports.bench import bench as bench
    from ovstrans.reports.lock import check_lock as check_lock
    from ovstrans.reports.lock import update_lock as update_lock
    from ovstrans.reports.report import Report as Report
    from ovstrans.runtime.semi_structured import to_semi_structured as to_semi_structured
    from ovstrans.segmenter.predict import predict as predict
    from ovstrans.segmenter.segmenter import Segmenter as Segmenter
    from ovstrans.spectrum.analysis import analyze as analyze
    from ovstrans.training.finetune import finetune as finetune
    from ovstrans.training.run_folder import Run as Run


_HOMES = {
    "Checkpoint": "ovstrans.checkpoints.file",
    "Clip": "ovstrans.clip.load",
    "Mask": "ovstrans.masks.mask",
    "Report": "ovstrans.reports.report",
    "Run": "ovstrans.training.run_folder",
    "Segmenter": "ovstrans.segmenter.segmenter",
    "analyze": "ovstrans.spectrum.analysis",
    "bench": "ovstrans.reports.bench",
    "check_dataset": "ovstrans.datasets.check",
    "check_lock": "ovstrans.reports.lock",
    "export": "ovstrans.interop.export",
    "finetune": "ovstrans.training.finetune",
    "inspect": "ovstrans.interop.inspect",
    "list_datasets": "ovstrans.datasets.catalog",
    "list_models": "ovstrans.clip.catalog",
    "load_checkpoint": "ovstrans.checkpoints.file",
    "load_clip": "ovstrans.clip.load",
    "load_mask": "ovstrans.masks.file",
    "open_dataset": "ovstrans.datasets.catalog",
    "predict": "ovstrans.segmenter.predict",
    "prepare_dataset": "ovstrans.datasets.published.prepare",
    "progress_bar": "ovstrans.console",
    "prune": "ovstrans.pruning.prune",
    "show_dataset": "ovstrans.datasets.show",
    "to_semi_structured": "ovstrans.runtime.semi_structured",
    "update_lock": "ovstrans.reports.lock",
}

__all__ = [
    "Checkpoint",
    "Clip",
    "Mask",
    "Report",
    "Run",
    "Segmenter",
    "__version__",
    "analyze",
    "bench",
    "check_dataset",
    "check_lock",
    "export",
    "finetune",
    "inspect",
    "list_datasets",
    "list_models",
    "load_checkpoint",
    "load_clip",
    "load_mask",
    "open_dataset",
    "predict",
    "prepare_dataset",
    "progress_bar",
    "prune",
    "show_dataset",
    "to_semi_structured",
    "update_lock",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ovstrans' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
