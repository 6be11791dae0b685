"""Packages of the distribution, and its compiled kernels; everything else is in pyproject.toml.

The bundled CLIPs live in `checkpoints/` of the checkout and are installed as `ovstrans.bundled`, which
`packages.find` cannot express.

The kernels of `ovstrans.runtime` are plain shared libraries, loaded through ctypes: one wheel serves every Python. A
machine without a C compiler installs the package without them.
"""

import runpy
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

RUNTIME = "ovstrans/runtime"
KERNELS = runpy.run_path(str(Path(__file__).parent / RUNTIME / "build.py"))


class BuildKernels(build_ext):
    """Compiles kernels.c for every vector width; a failure is told and is none of the installation."""

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        folder = Path() if in_place else Path(self.build_lib)
        self.built = [str(path) for path in KERNELS["build"](folder / RUNTIME, log=self.warn)]

    def get_outputs(self) -> list[str]:
        return [] if self.inplace else self.built

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class TagWheel(bdist_wheel):
    """Names the platform but no version of Python, whose interface the libraries do not use."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[*find_packages(include=["ovstrans", "ovstrans.*"]), "ovstrans.bundled"],
    package_dir={"ovstrans.bundled": "checkpoints"},
    ext_modules=[Extension("ovstrans.runtime.kernels", [f"{RUNTIME}/kernels.c"])],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": TagWheel},
)
