"""Shared by all tests: the same hypothesis examples in every run, signals, and no trace in the user's cache folder."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from ovstrans import console

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What ovstrans keeps between runs, text embeddings for one, stays in a folder of the test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVSTRANS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Interrupts arrive, also where the shell started the tests in the background and had them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    """A command silences no test after it with `--quiet`, nor shows the library's notices there."""
    yield
    console.set_quiet(False)
    console.hide_logs()
