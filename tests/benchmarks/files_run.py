"""The files of ovstrans whose functions run during a command: how many a reader has to open to follow it.

    python -m tests.benchmarks.files_run bench RUN --limit 2 --quiet

Runs `ovstrans` with the arguments given, in this process, and prints the number of files and their names to stderr.
A file counts if one of its functions or methods is called (`sys.setprofile`) after its import: what runs while a
module is imported, and a module's own top level, do not count. The limits of the project are 45 files for `bench` on
a DeepLabV3 checkpoint and 30 for `prune`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import ovstrans

PACKAGE = Path(ovstrans.__file__).parent


class FileRecorder:
    """A profile function that notes the files of a package whose functions are called.

    Args:
        root: Folder of the package.

    Attributes:
        files: Paths relative to the folder.
    """

    def __init__(self, root: Path = PACKAGE) -> None:
        self.files: set[str] = set()
        self._root = root
        self._known: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Note the file of a called function; see `sys.setprofile`."""
        code = frame.f_code
        if event != "call" or code in self._known or not code.co_filename.startswith(f"{self._root}/"):
            return
        if code.co_name != "<module>" and not _is_importing(frame):
            self._known.add(code)
            self.files.add(str(Path(code.co_filename).relative_to(self._root)))


def record(arguments: Sequence[str]) -> tuple[int, set[str]]:
    """Run `ovstrans` with arguments.

    Returns:
        Its exit status, and the files whose functions ran, relative to the package.
    """
    from ovstrans.cli.main import run

    recorder = FileRecorder()
    sys.setprofile(recorder)
    threading.setprofile(recorder)
    try:
        status = run(list(arguments))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return status, recorder.files


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def main(arguments: Sequence[str]) -> int:
    """Print the count and the list; return the exit status of the command."""
    status, files = record(arguments)
    print(f"{len(files)} files whose functions run", *sorted(files), sep="\n", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
