"""The run folder: what a fine-tuning run leaves behind, and where.

recipe.toml              every setting of the run, resolved; `--recipe RUN/recipe.toml` repeats it
environment.json         versions and machine
log.jsonl                one JSON object a step
alpha.json               the freeze plan, where the run made one (`--plan-after`)
checkpoint.safetensors   the result
state/                   what --resume needs, while the run is unfinished
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovstrans import console, files
from ovstrans.errors import InputError
from ovstrans.recipes.load import load_recipe
from ovstrans.recipes.schema import FinetuneRecipe
from ovstrans.recipes.write import toml_text

_ENTRIES = ("recipe.toml", "environment.json", "log.jsonl", "alpha.json", "checkpoint.safetensors", "state")


@dataclass(frozen=True)
class RunFolder:
    """The paths in a run folder."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def log(self) -> Path:
        """One JSON object a step."""
        return self.path / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The sparse checkpoint."""
        return self.path / "checkpoint.safetensors"

    @property
    def alpha(self) -> Path:
        """The plan made on the way."""
        return self.path / "alpha.json"

    @property
    def state(self) -> Path:
        """The resumable state."""
        return self.path / "state" / "state.pt"

    @property
    def mask(self) -> Path:
        """The mask, kept for resuming until the checkpoint holds it."""
        return self.path / "state" / "mask.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.checkpoint.exists() and not self.state.exists()

    def begin(self, settings: FinetuneRecipe, environment: dict[str, Any], *, force: bool) -> None:
        """Make the folder and write what is known before the first step, in place of an older run's files."""
        files.check_output(self.path, force=force, directory=True)
        self._clear()
        files.write_text(self.recipe, toml_text(settings.to_table()))
        files.write_json(self.path / "environment.json", environment)

    def stored(self) -> FinetuneRecipe:
        """The settings of the run that is here; InputError where none is."""
        if not self.recipe.exists():
            raise InputError(
                f"{self.path}: no run to resume (no recipe.toml in it); leave out --resume, or give its --out"
            )
        return FinetuneRecipe.parse(load_recipe(str(self.recipe)), str(self.recipe))

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line to the log."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry, allow_nan=False) + "\n")

    def rewind_log(self, step: int) -> None:
        """Drop what the log says of steps after `step`: they will be taken again."""
        if not self.log.exists():
            return
        kept = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue  # a line that a kill cut short
        files.write_text(self.log, "".join(kept))

    @contextlib.contextmanager
    def guarded(self, main: bool = True) -> Iterator[None]:
        """For the steps of a run: where one fails or a signal ends it, say what is saved and how to go on.

        A run that has saved nothing yet is taken away, so that the next one needs no --force.
        main: False for a process that writes nothing.
        """
        try:
            yield
        except BaseException as stop:
            if main and self.state.exists():
                what = "keeps what was saved" if isinstance(stop, Exception) else "saved"
                step, command = self.saved_step(), self._command("--resume")
                console.warn(f"{self.path}: {what} after step {step}; go on with: {command}")
            elif main:
                self._clear()
                with contextlib.suppress(OSError):  # what else is there stays
                    self.path.rmdir()
            raise

    def saved_step(self) -> int:
        """The step after which the state was saved."""
        import torch

        # Mapped, not read: of a large state only the page with the number is touched.
        return int(torch.load(self.state, map_location="cpu", weights_only=True, mmap=True)["step"])

    def require_checkpoint(self) -> Path:
        """The checkpoint; InputError, saying how to come by one, where the run has none."""
        if self.checkpoint.exists():
            return self.checkpoint
        if self.state.exists():
            raise InputError(f"{self.path}: this run is not finished; go on with: {self._command('--resume')}")
        if self.recipe.exists():
            raise InputError(
                f"{self.path}: the run holds no checkpoint, and no state to go on from; train again: "
                f"{self._command('--force')}"
            )
        raise InputError(f"{self.path}: no {self.checkpoint.name} in this folder; give a run of `ovstrans finetune`")

    def _command(self, switch: str) -> str:
        processes = os.environ.get("LOCAL_WORLD_SIZE")  # under torchrun; what its other options were, it knows alone
        program = "ovstrans" if processes is None else f"torchrun --nproc_per_node {processes} -m ovstrans"
        return f"{program} finetune {switch} --out {shlex.quote(str(self.path))}"

    def _clear(self) -> None:
        for name in _ENTRIES:
            entry = self.path / name
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def end(self) -> None:
        """Drop the state of a finished run."""
        shutil.rmtree(self.path / "state", ignore_errors=True)
