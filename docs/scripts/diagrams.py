"""Draws docs/assets/flow.svg and docs/assets/house.svg: python docs/scripts/diagrams.py"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

ASSETS = Path(__file__).parents[1] / "assets"
ROOMS = (
    (("cli", "commands"),),
    (("reports", "bench, lock"),),
    (
        ("segmenter", "using a model"),
        ("pruning", "making masks"),
        ("training", "fine-tuning"),
        ("interop", "other files"),
    ),
    (("evaluation", "mIoU, PQ"), ("costs", "params, MACs")),
    (("frameworks", "DeepLabV3, FC-CLIP, GKC"), ("runtime", "skipping zeros"), ("spectrum", "alpha, plans")),
    (("checkpoints", "sparse files"), ("masks", "which weights")),
    (("clip", "image and text encoder"),),
    (("datasets", "images, labels"), ("vocabulary", "class names"), ("recipes", "settings")),
    (("console · figures · files · progress · errors · version", "for every room"),),
)
_STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:14px;fill:#123;text-anchor:middle}"
    ".small{font-size:11px;fill:#456}.file{fill:#e0f2f1;stroke:#00796b}.room{fill:#f5f5f5;stroke:#607d8b}"
    ".arrow{stroke:#00796b;stroke-width:1.5;fill:none;marker-end:url(#tip)}.verb{font-weight:600;fill:#00695c}"
)
_TIP = (
    '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 10 5 0 10z" fill="#00796b"/></marker></defs>'
)


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    """Return a drawing on a white ground."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>{_TIP}"
        f'<rect width="{width}" height="{height}" fill="#fff"/>' + "".join(parts) + "</svg>\n"
    )


def box(x: float, y: float, width: float, name: str, note: str, kind: str, height: float = 44) -> str:
    """Return a rounded box with a name and a smaller note under it."""
    middle = x + width / 2
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        f'<text x="{middle}" y="{y + 19}">{escape(name)}</text>'
        f'<text class="small" x="{middle}" y="{y + 35}">{escape(note)}</text>'
    )


def arrow(path: str, verb: str, x: float, y: float) -> str:
    """Return an arrow with the name of a command beside it."""
    return f'<path class="arrow" d="{path}"/><text class="verb" x="{x}" y="{y}">{verb}</text>'


def flow() -> str:
    """Return the drawing of commands and the files between them."""
    return svg(
        900,
        220,
        "From CLIP weights to a report",
        [
            box(10, 86, 130, "CLIP weights", "open_clip or a file", "file"),
            box(240, 26, 170, "mask.safetensors", "1 bit a weight", "file"),
            box(240, 146, 170, "alpha.json", "freeze plan", "file"),
            box(510, 86, 150, "run/", "sparse checkpoint, log", "file"),
            box(745, 16, 145, "report.json", "params, MACs, mIoU", "file"),
            box(745, 86, 145, "pictures", "label maps, segments", "file"),
            box(745, 156, 145, "other formats", "dense, detectron2, ...", "file"),
            arrow("M140 100C190 95 190 50 238 48", "prune", 160, 60),
            arrow("M140 116C190 120 190 165 238 168", "analyze", 156, 172),
            arrow("M410 48C460 50 460 98 508 102", "finetune", 494, 52),
            arrow("M410 168C460 166 460 118 508 114", "", 0, 0),
            arrow("M660 100C700 95 700 42 743 38", "bench", 682, 44),
            arrow("M660 108L743 108", "predict", 694, 103),
            arrow("M660 116C700 120 700 174 743 178", "export", 682, 180),
        ],
    )


def house() -> str:
    """Return the drawing of the rooms, each floor above what it uses."""
    parts, gap, full = [], 10.0, 680.0
    for floor, rooms in enumerate(ROOMS):
        width = (full - gap * (len(rooms) - 1)) / len(rooms)
        for number, (name, note) in enumerate(rooms):
            parts.append(box(10 + number * (width + gap), 10 + floor * 52, width, name, note, "room"))
    return svg(700, 14 + 52 * len(ROOMS), "The rooms of the package", parts)


if __name__ == "__main__":
    ASSETS.mkdir(exist_ok=True)
    for name, drawing in (("flow", flow()), ("house", house())):
        (ASSETS / f"{name}.svg").write_text(drawing, encoding="utf-8")
