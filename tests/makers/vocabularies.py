"""Make the vocabulary files that are shipped in `ovstrans/vocabulary/published`; see the README.md there.

Run as `python -m tests.makers.vocabularies --labels FOLDER --tables FILE --vipseg FILE [--out FOLDER]`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ovstrans.errors import InputError
from ovstrans.files import existing_file, write_text
from ovstrans.vocabulary.files import read_vocabulary
from ovstrans.vocabulary.vocabulary import Vocabulary

SHIPPED = Path(__file__).parents[2] / "ovstrans" / "vocabulary" / "published"
WIDTH = 120

PROMPT_ENGINEERED = (
    "classes: the prompt-engineered synonyms of OpenSeg (Ghiasi et al., ECCV 2022), as handed on by ODISE (Xu et al.,",
    "CVPR 2023) and FC-CLIP (Yu et al., NeurIPS 2023; Apache-2.0).",
)
TABLE = ("plain, things, colors: the dataset's own, as FC-CLIP's category tables have them.",)
OURS = ("classes: synonyms by ovstrans, from the authors' names.",)
OF_CAMVID = (
    "plain: the 11 classes that SegNet (Badrinarayanan et al., TPAMI 2017) makes of CamVid's 32 (Brostow et al.,",
    "Pattern Recognition Letters 2009), in its order; colors: CamVid's.",
)
OF_VIPSEG = (
    "plain, things, colors: VIPSeg's own (Miao et al., CVPR 2022).",
    "novel: the 12 that GKC (Han et al., ICCV 2023) keeps from training.",
)
OF_VSPW = (
    "plain: VSPW's own (Miao et al., CVPR 2021), 1 to 124; its 0, others, is no class. things, colors: of the same",
    "classes in VIPSeg (Miao et al., CVPR 2022).",
)

PUBLISHED: Mapping[str, tuple[str, str | None]] = {
    "ade20k-150": ("ade20k_150", "ADE20K_150_CATEGORIES"),
    "ade20k-847": ("ade20k_847", "ADE20K_847_CATEGORIES"),
    "cityscapes": ("cityscapes", "CITYSCAPES_CATEGORIES"),
    "coco-panoptic": ("coco_panoptic", "COCO_CATEGORIES"),
    "coco-stuff": ("coco_stuff", "COCO_STUFF_CATEGORIES"),
    "context-459": ("pascal_ctx_459", "PASCAL_CTX_459_CATEGORIES"),
    "context-59": ("pascal_ctx_59", "PASCAL_CTX_59_CATEGORIES"),
    "lvis-1203": ("lvis_1203", None),
    "mapillary-65": ("mapillary_vistas", "MAPILLARY_VISTAS_SEM_SEG_CATEGORIES"),
    "pascal-21": ("pascal_voc_21", "PASCAL_VOC_21_CATEGORIES"),
}
"""Maps each vocabulary to the name of its list in OpenSeg's format and the key of its category table, if it has one."""

CAMVID = (
    ("sky", ("sky", "clouds"), (128, 128, 128)),
    ("building", ("building", "buildings"), (128, 0, 0)),
    ("pole", ("pole", "poles"), (192, 192, 128)),
    ("road", ("road", "street"), (128, 64, 128)),
    ("pavement", ("pavement", "sidewalk"), (0, 0, 192)),
    ("tree", ("tree", "trees", "vegetation"), (128, 128, 0)),
    ("sign symbol", ("sign symbol", "traffic sign", "traffic light"), (192, 128, 128)),
    ("fence", ("fence", "fences"), (64, 64, 128)),
    ("car", ("car", "cars"), (64, 0, 128)),
    ("pedestrian", ("pedestrian", "pedestrians", "person"), (64, 64, 0)),
    ("bicyclist", ("bicyclist", "bicyclists", "cyclist"), (0, 128, 192)),
)
"""The 11 classes that SegNet made of CamVid's 32, in its order, with CamVid's colours."""
CAMVID_THINGS = ("sign symbol", "car", "pedestrian", "bicyclist")

VIPSEG_NOVEL = (78, 94, 112, 76, 102, 32, 122, 116, 80, 57, 34, 11)
"""Indices of the classes that GKC (Han et al.) does not train on."""

VIPSEG_SYNONYMS = {
    "stair": ("stairs", "staircase"),
    "rail": ("railway track",),
    "goal": ("goal net",),
    "pillar": ("column",),
    "athletic field": ("playing field", "sports field"),
    "well": ("manhole cover",),
    "crosswalk": ("zebra crossing",),
    "grandstand": ("spectator stand", "bleachers"),
    "snowfield": ("snow",),
    "stone": ("rock",),
    "airplane": ("aeroplane", "plane"),
    "tyre": ("tire",),
    "motorcycle": ("motorbike",),
    "bicycle": ("bike",),
    "cattle": ("cow",),
    "sofa": ("couch",),
    "flag": ("banner",),
    "ball net": ("net",),
    "commode": ("toilet",),
    "roaster": ("oven",),
    "tissue": ("paper tissue",),
    "trash can": ("garbage can", "dustbin"),
    "instrument": ("musical instrument",),
    "mobile phone": ("cell phone",),
    "textiles": ("cloth",),
}
"""Further names of VIPSeg's classes, by their first name."""


def combine(labels: Path, tables: Mapping[str, Any], name: str) -> Vocabulary:
    """Return the vocabulary of an OpenSeg list and its category table, which have the same order."""
    stem, key = PUBLISHED[name]
    vocabulary = replace(read_vocabulary(labels / f"{stem}_with_prompt_eng.txt"), name=name)
    if key is None:
        return replace(vocabulary, things=frozenset(range(len(vocabulary))))  # LVIS: instances only
    table = tables[key]
    if len(table) != len(vocabulary):
        raise InputError(f"{key}: {len(table)} entries, {stem} has {len(vocabulary)} classes; they must match")
    colors = [tuple(entry.get("color", ())) for entry in table]
    own = len(set(colors)) > len(table) // 2 and all(colors)  # PASCAL-Context 459 repeats 59 colours
    return replace(
        vocabulary,
        plain=tuple((entry["name"].strip(),) for entry in table),
        things=frozenset(i for i, entry in enumerate(table) if entry.get("isthing") and entry["name"] != "background"),
        colors=tuple(colors) if own else None,
    )


def make_camvid() -> Vocabulary:
    """Return CamVid's vocabulary of 11 classes."""
    names = [name for name, _, _ in CAMVID]
    return Vocabulary(
        "camvid",
        tuple(synonyms for _, synonyms, _ in CAMVID),
        things=frozenset(map(names.index, CAMVID_THINGS)),
        colors=tuple(color for _, _, color in CAMVID),
        plain=tuple((name,) for name in names),
    )


def make_vipseg(table: Sequence[Mapping[str, Any]], name: str) -> Vocabulary:
    """Return the 124 classes of VIPSeg, which are those of VSPW without its 0, "others".

    Args:
        table: VIPSeg's category table.
        name: `vipseg`, which has novel classes, or `vspw`.
    """
    classes = []
    for entry in table:
        names = [part.replace("_", " ").lower() for part in entry["name"].split("_or_")]
        classes.append(tuple(dict.fromkeys([*names, *VIPSEG_SYNONYMS.get(names[0], ())])))
    return Vocabulary(
        name,
        tuple(classes),
        novel=frozenset(VIPSEG_NOVEL if name == "vipseg" else ()),
        things=frozenset(index for index, entry in enumerate(table) if entry["isthing"]),
        colors=tuple(tuple(entry["color"]) for entry in table),
        plain=tuple((entry["name"],) for entry in table),
    )


def to_toml(vocabulary: Vocabulary, about: Iterable[str]) -> str:
    """Return a vocabulary with at most one plain name per class as TOML, preceded by the lines `about` as comment."""
    lines = [*(f"# {line}" for line in about), "", f"name = {json.dumps(vocabulary.name)}"]
    lists: dict[str, list[Any]] = {"classes": [", ".join(synonyms) for synonyms in vocabulary.classes]}
    if vocabulary.plain is not None:
        lists["plain"] = [names[0] for names in vocabulary.plain]
    if vocabulary.display is not None:
        lists["display"] = list(vocabulary.display)
    for key, indices in (("novel", vocabulary.novel), ("things", vocabulary.things)):
        if indices:
            lists[key] = [vocabulary.names[index] for index in sorted(indices)]
    if vocabulary.colors is not None:
        lists["colors"] = [list(color) for color in vocabulary.colors]
    for key, items in lists.items():
        lines += ["", f"{key} = [", *_wrapped(items, one_per_line=key == "classes"), "]"]
    return "\n".join(lines) + "\n"


def make_all(labels: Path, tables: Path, vipseg_table: Path, out: Path) -> None:
    """Write all vocabulary files.

    Args:
        labels: Folder of FC-CLIP's files `*_with_prompt_eng.txt`.
        tables: JSON file with FC-CLIP's category tables by name.
        vipseg_table: VIPSeg's `panoVIPSeg_categories.json`.
        out: Folder to write to.
    """
    categories = json.loads(existing_file(tables).read_text(encoding="utf-8"))
    pano = json.loads(existing_file(vipseg_table).read_text(encoding="utf-8"))
    for name, (stem, key) in PUBLISHED.items():
        about = (*PROMPT_ENGINEERED, f"From {stem}_with_prompt_eng.txt.", *(TABLE if key else ()))
        vocabulary = combine(labels, categories, name)
        write_text(out / f"{name}.toml", to_toml(vocabulary, about))
        if name == "pascal-21":
            foreground = replace(vocabulary.subset(range(1, len(vocabulary))), name="pascal-20")
            write_text(out / "pascal-20.toml", to_toml(foreground, (*about, "Without the background.")))
    write_text(out / "camvid.toml", to_toml(make_camvid(), (*OURS, *OF_CAMVID)))
    write_text(out / "vipseg.toml", to_toml(make_vipseg(pano, "vipseg"), (*OURS, *OF_VIPSEG)))
    write_text(out / "vspw.toml", to_toml(make_vipseg(pano, "vspw"), (*OURS, *OF_VSPW)))


def _wrapped(items: Sequence[Any], *, one_per_line: bool) -> list[str]:
    lines: list[str] = []
    for item in items:
        word = json.dumps(item) + ","
        if lines and not one_per_line and len(lines[-1]) + len(word) < WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; wrong input ends with one line and exit status 2."""
    parser = argparse.ArgumentParser("python -m tests.makers.vocabularies", description="Make the vocabularies.")
    parser.add_argument(
        "--labels", required=True, type=Path, metavar="FOLDER", help="folder of the files *_with_prompt_eng.txt"
    )
    parser.add_argument("--tables", required=True, type=Path, metavar="FILE", help="category tables as JSON")
    parser.add_argument("--vipseg", required=True, type=Path, metavar="FILE", help="panoVIPSeg_categories.json")
    parser.add_argument(
        "--out",
        default=SHIPPED,
        type=Path,
        metavar="FOLDER",
        help="where to write; default: ovstrans/vocabulary/published",
    )
    options = parser.parse_args(arguments)
    try:
        make_all(options.labels, options.tables, options.vipseg, options.out)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
