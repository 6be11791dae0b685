"""Feeds readers with hostile files and reports whatever is not one of our errors, or takes too long or too much.

    python -m tests.benchmarks.fuzz weights --inputs 20000
    python -m tests.benchmarks.fuzz all --inputs 2000 --seed 7 --keep found

Each input follows from the seed and its number. The reader runs in a child process; one that ends or hangs is replaced.
A failing input is kept in a folder with its number.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from ovstrans.errors import OvstransError
from tests.benchmarks.fuzz.mutate import mutate
from tests.benchmarks.fuzz.readers import READERS

SECONDS = 5.0
MEGABYTES = 500


class Slow(BaseException):
    """Raised in the child when an input takes longer than `SECONDS`."""


def make_input(seeds: list[tuple[str, bytes]], seed: int, number: int) -> tuple[str, bytes]:
    """Return the suffix and the content of an input."""
    draw = random.Random(f"{seed}/{number}")
    suffix, content = draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 1, 2))):
        try:
            content = mutate(content, draw)
        except (ValueError, KeyError, IndexError, TypeError, NotImplementedError, OSError):  # no longer of its format
            break
        except Exception:  # of zipfile: an archive that is none any more
            break
    return suffix, content


def fuzz(name: str, inputs: int, seed: int = 0, keep: Path | None = None) -> Iterator[tuple[int, str]]:
    """Yield the number of each failing input and what happened.

    Args:
        name: Reader to feed.
        inputs: How many files.
        seed: Where they follow from.
        keep: Folder for failing inputs.
    """
    seeds = READERS[name].seeds()
    number, context = 0, multiprocessing.get_context("fork")
    while number < inputs:
        ours, theirs = context.Pipe()
        child = context.Process(target=_serve, args=(name, seeds, seed, number, inputs, theirs))
        child.start()
        theirs.close()
        try:
            while number < inputs:
                if not ours.poll(3 * SECONDS):
                    child.kill()
                    raise EOFError("hangs")
                failure = ours.recv()
                if failure:
                    yield number, failure
                    _keep(keep, name, make_input(seeds, seed, number), number)
                number += 1
        except (EOFError, ConnectionResetError) as error:
            yield number, str(error) or "ended the process"
            _keep(keep, name, make_input(seeds, seed, number), number)
            number += 1
        child.join(1)
        child.kill()


def _keep(folder: Path | None, name: str, made: tuple[str, bytes], number: int) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name.replace(' ', '_')}-{number}{made[0]}").write_bytes(made[1])


def _serve(name: str, seeds: list[tuple[str, bytes]], seed: int, first: int, last: int, answers: Connection) -> None:
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _alarm)
    with Path("/proc/self/statm").open() as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * MEGABYTES * 2**20, hard))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            answers.send(_feed(name, make_input(seeds, seed, number), Path(folder)))


def _feed(name: str, made: tuple[str, bytes], folder: Path) -> str:
    """Return what went wrong with an input; "" if nothing did."""
    suffix, content = made
    path = folder / f"f{suffix}"
    path.write_bytes(content)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        READERS[name].read(path)
    except OvstransError as error:
        text = str(error)
        if "\n" in text or len(text) > 3000 or "not enough memory" in text:
            return f"message {text[:200]!r}"
        if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in text):
            return f"a message that a terminal obeys: {text[:200]!r}"
    except Slow:
        return f"more than {SECONDS} s"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return f"{grown:.0f} MB after {time.monotonic() - start:.1f} s" if grown > MEGABYTES else ""


def _alarm(signum: int, frame: FrameType | None) -> None:
    raise Slow


def main() -> int:
    """Parse the command line, and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=[*READERS, "all"])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    failures = 0
    for name in READERS if given.reader == "all" else [given.reader]:
        start, before = time.monotonic(), failures
        for number, failure in fuzz(name, given.inputs, given.seed, given.keep):
            failures += 1
            print(f"{name} {number}: {failure}", flush=True)
        print(
            f"{name}: {given.inputs} inputs, {failures - before} failures, {time.monotonic() - start:.0f} s", flush=True
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
