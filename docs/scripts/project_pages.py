"""Shows CONTRIBUTING.md and CHANGELOG.md of the repository as pages of the site; mkdocs loads this file as a hook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = {"CONTRIBUTING.md": "develop/contributing.md", "CHANGELOG.md": "develop/changelog.md"}


def page_text(name: str) -> str:
    """Return a file of the repository with its links as seen from the site's folder `develop`."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](../")
    return re.sub(r"\]\((\w+\.md)\)", lambda link: f"]({Path(PAGES[link[1]]).name})", text)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to the site; mkdocs calls this."""
    from mkdocs.structure.files import File

    for name, place in PAGES.items():
        files.append(File.generated(config, place, content=page_text(name)))
    return files
