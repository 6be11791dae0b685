"""Packages of the distribution; everything else is in pyproject.toml.

The bundled CLIPs live in `checkpoints/` of the checkout and are installed as `ovstrans.bundled`, which
`packages.find` cannot express.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ovstrans", "ovstrans.*"]), "ovstrans.bundled"],
    package_dir={"ovstrans.bundled": "checkpoints"},
)
