"""Makes `ovstrans/clip/model_sizes.json`: python -m tests.makers.model_sizes. To run when more models are supported."""

from __future__ import annotations

import json
from pathlib import Path

from ovstrans.clip import catalog
from ovstrans.clip.models import model_names

PATH = Path(catalog.__file__).with_name(catalog.SIZES_FILE)


def main() -> None:
    """Count every supported model on meta tensors and write the file."""
    rows = [f"    {json.dumps(name)}: {json.dumps(list(catalog.count_sizes(name)))}" for name in model_names()]
    columns = '  "columns": ["image_encoder", "prunable"],\n'
    PATH.write_text("{\n" + columns + '  "models": {\n' + ",\n".join(rows) + "\n  }\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
