"""Kernels for the tests: those of the package, or compiled for the session where it has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ovstrans.runtime import library
from ovstrans.runtime.build import build, find_compiler, machine_widths
from ovstrans.runtime.library import Kernels, find_kernels


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the libraries of the source as it is."""
    if find_compiler() is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("kernels")
    assert len(build(folder)) == len(machine_widths())
    return folder


@pytest.fixture(autouse=True)
def fresh_kernels(built: Path) -> Iterator[None]:
    """Use the libraries of the session, not those that an installation left."""
    before, library.FOLDER = library.FOLDER, built
    yield
    library.FOLDER = before


@pytest.fixture(params=[64, 32, 16])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The kernels of every width that this CPU runs."""
    found = find_kernels(request.param)
    if found is None or found.width != request.param:
        pytest.skip(f"this CPU has no vectors of {request.param} bytes")
    return found
