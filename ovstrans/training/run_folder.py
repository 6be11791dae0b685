"""The run folder: the files that a fine-tuning run leaves behind.

recipe.toml              every setting of the run; as a recipe it repeats the run
environment.json         versions and machine
log.jsonl                one JSON object a step
alpha.json               the freeze plan, if the run made one (`plan_after`)
checkpoint.safetensors   the result
inputs/                  what the run was given as an object and not as a file; see `training.inputs`
state/                   what resuming needs, while the run is not finished
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovstrans import files
from ovstrans.checkpoints.file import NAME, Checkpoint, find_checkpoint, load_checkpoint
from ovstrans.errors import InputError, counted
from ovstrans.masks.file import DAMAGED, parse_object
from ovstrans.parsing import LARGEST_LOG, parse_json, read_text
from ovstrans.recipes.load import load_recipe
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.recipes.write import toml_text
from ovstrans.spectrum.plan import FreezePlan

logger = logging.getLogger(__name__)

_ENTRIES = ("recipe.toml", "environment.json", "log.jsonl", "alpha.json", NAME, "inputs", "state")


@dataclass(frozen=True, repr=False)
class Run:
    """A finished fine-tuning run. It can be given wherever the path of a run folder can.

    Attributes:
        path: The run folder.
        recipe: Every setting of the run.
        plan: The freeze plan that was in force at the end; None if no layer was frozen.
        log: One entry a step: step, loss, loss/NAME, lr, grad_norm, images_per_second, processor_seconds, elapsed.
    """

    path: Path
    recipe: FinetuneRecipe
    plan: FreezePlan | None
    log: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Read a finished run from its folder.

        Raises:
            MissingFileError: The folder holds no run, or one that is not finished.
            InputError: A file in it is damaged.
        """
        folder = RunFolder(Path(path))
        checkpoint = find_checkpoint(folder.path)
        return cls(folder.path, folder.stored(), _plan_of(folder, checkpoint), folder.entries())

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file."""
        return self.path / NAME

    def load(self) -> Checkpoint:
        """Read the checkpoint."""
        return load_checkpoint(self.checkpoint)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        recipe = self.recipe
        loss = f", loss {self.log[0]['loss']:.4g} to {self.log[-1]['loss']:.4g}" if self.log else ""
        mask = f"mask {recipe.run.mask}" if recipe.run.mask else "no mask"
        frozen = f"{counted(len(self.plan.frozen), 'layer')} frozen" if self.plan else "no layers frozen"
        return (
            f"Run {self.path}: {recipe.model.framework} on {recipe.model.clip}, {recipe.data.dataset}, "
            f"{recipe.training.steps} steps{loss}\n"
            f"{mask}, {frozen}"
        )


@dataclass(frozen=True)
class RunFolder:
    """Paths in a run folder, and the writing of its files.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """Every setting of the run."""
        return self.path / "recipe.toml"

    @property
    def log(self) -> Path:
        """One JSON object a step."""
        return self.path / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The sparse checkpoint."""
        return self.path / NAME

    @property
    def alpha(self) -> Path:
        """The freeze plan that the run made."""
        return self.path / "alpha.json"

    @property
    def inputs(self) -> Path:
        """Folder of what the run was given as objects."""
        return self.path / "inputs"

    @property
    def state(self) -> Path:
        """The state to resume from."""
        return self.path / "state" / "state.pt"

    @property
    def mask(self) -> Path:
        """Copy of the mask, for resuming until the checkpoint holds it."""
        return self.path / "state" / "mask.safetensors"

    @property
    def finished(self) -> bool:
        """True if the run came to its end."""
        return self.checkpoint.exists() and not self.state.exists()

    def begin(self, recipe: FinetuneRecipe, environment: dict[str, Any], *, force: bool) -> None:
        """Make the folder and write recipe and environment. An older run's files are removed.

        Args:
            recipe: Every setting of the run.
            environment: See `environment.environment`.
            force: Allow the folder to hold something already.

        Raises:
            InputError: The folder cannot be written, or holds something.
        """
        files.check_output(self.path, force=force, directory=True)
        self._clear()
        files.write_text(self.recipe, toml_text(recipe.to_table()))
        files.write_json(self.path / "environment.json", environment)

    def stored(self) -> FinetuneRecipe:
        """Return the recipe of the run.

        Raises:
            InputError: The folder holds no run.
        """
        if not self.recipe.exists():
            raise InputError(
                f"{self.path}: no run to resume (no recipe.toml in it); leave out `resume=True`, or give its `out`"
            )
        return FinetuneRecipe.parse(load_recipe(str(self.recipe)), str(self.recipe))

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry to the log."""
        with files.appending(self.log) as log:
            log.write(json.dumps(entry, allow_nan=False) + "\n")

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries of the log, without a line that a kill has cut short."""
        if not self.log.exists():
            return []
        found = []
        for line in read_text(files.existing_file(self.log), LARGEST_LOG, errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = parse_json(line)
                if isinstance(entry, dict) and type(entry.get("step")) is int:
                    found.append(entry)
        return found

    def rewind_log(self, step: int) -> None:
        """Remove the entries of steps after `step`, which will be taken again."""
        if self.log.exists():
            kept = [entry for entry in self.entries() if entry["step"] <= step]
            files.write_text(self.log, "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in kept))

    @contextlib.contextmanager
    def guarded(self, main: bool = True) -> Iterator[None]:
        """Report what is saved if the steps in the block fail or a signal ends them.

        The files of a run that has saved no state yet are removed, so that the next run needs no `force`.

        Args:
            main: False for a process that writes nothing.
        """
        try:
            yield
        except BaseException as stop:
            if main and self.state.exists():
                what = "keeps what was saved" if isinstance(stop, Exception) else "saved"
                logger.warning(
                    "%s: %s after step %d; `resume=True` with `out=%s` continues it",
                    self.path,
                    what,
                    self.saved_step(),
                    self.path,
                )
            elif main:
                self._clear()
                with contextlib.suppress(OSError):  # the folder stays if it holds other files
                    self.path.rmdir()
            raise

    def saved_step(self) -> int:
        """Return the number of steps in the saved state."""
        import torch

        # Memory-mapped: of a large state only the page with the number is read.
        return int(torch.load(self.state, map_location="cpu", weights_only=True, mmap=True)["step"])

    def end(self) -> None:
        """Remove the state of a finished run."""
        shutil.rmtree(self.path / "state", ignore_errors=True)

    def _clear(self) -> None:
        for name in _ENTRIES:
            entry = self.path / name
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


def _plan_of(folder: RunFolder, checkpoint: Path) -> FreezePlan | None:
    """Return the plan of a finished run: its layers by the checkpoint, its rule by the plan's file if that exists."""
    provenance = parse_object(files.read_metadata(checkpoint).get("provenance", "{}"), f"{checkpoint}: provenance")
    frozen = provenance.get("frozen", [])
    if not isinstance(frozen, list) or not all(isinstance(name, str) for name in frozen):
        raise InputError(f"{checkpoint}: provenance: frozen is no list of layer names; {DAMAGED}")
    if not frozen:
        return None
    from ovstrans.spectrum.file import load_plan

    for path in (folder.alpha, Path(folder.stored().run.plan)):
        with contextlib.suppress(InputError):
            plan = load_plan(path)
            if list(plan.frozen) == frozen:
                return plan
    return FreezePlan(rule="", threshold=None, frozen=tuple(frozen))
