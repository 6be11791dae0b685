"""The vocabulary: the classes that a dataset labels and a model recognises, their names in prompts, prompt templates.

A class is a tuple of synonyms. Its index is its position in the vocabulary, and label maps hold this index.
`vocabulary.files` reads vocabularies from files, `vocabulary.catalog` knows those of published datasets.

A class may be prompted by different names. The published ways of choosing them are:

synonyms    The synonyms of the vocabulary. Those of the published vocabularies are OpenSeg's prompt-engineered names,
            as used by FC-CLIP.
plain       The names that the dataset's authors use, unchanged: `wall-other-merged`, or `building, edifice` as a
            single prompt.
clean       The authors' names as the released code of GKC and OpenTrans simplifies them: `wall`.
joined      All synonyms in one prompt, separated by commas, as OpenTrans's code does for PASCAL VOC.

Shapes: `K` classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ovstrans.errors import InputError, did_you_mean

_MIN_CHROMA, _MAX_CHROMA = 0.05, 0.19
_MIN_LIGHTNESS, _MAX_LIGHTNESS = 0.38, 0.9
"""OKLab limits of generated colours: neither grey nor neon, neither black nor white."""


_SHOWN = 6
"""Classes in the text of a vocabulary, at most."""


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """The classes of a dataset or a model, in index order.

    Attributes:
        name: Name of the vocabulary in reports.
        classes: For each class the synonyms that prompts are made from. Empty for unlabelled images.
        novel: Indices of the classes that segmentation training never labels.
        things: Indices of the countable classes; all others are stuff.
        templates: Prompts, each with `{}` in place of the synonym.
        colors: One RGB colour per class, 0 to 255. If None, distinct colours are generated.
        plain: For each class the names that the dataset's authors use. If None, these are `classes`.
        display: One name per class for reports and legends, all different. If None, the first synonyms.

    Raises:
        InputError: A name is empty, a display name is used twice, an index is out of range, a template lacks `{}`,
            or a list has another length than `classes`.
    """

    name: str
    classes: tuple[tuple[str, ...], ...]
    novel: frozenset[int] = frozenset()
    things: frozenset[int] = frozenset()
    templates: tuple[str, ...] = ("{}",)
    colors: tuple[tuple[int, int, int], ...] | None = None
    plain: tuple[tuple[str, ...], ...] | None = None
    display: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_synonyms(self.classes, "class")
        self._check_synonyms(self.plain or (), "plain class")
        for kind, indices in (("novel", self.novel), ("things", self.things)):
            for index in sorted(indices):
                if not 0 <= index < len(self.classes):
                    raise InputError(
                        f"vocabulary {self.name}: {kind} class {index} is out of range, there are "
                        f"{len(self.classes)} classes"
                    )
        if not self.templates:
            raise InputError(f"vocabulary {self.name}: no templates; leave them out to prompt with the bare class name")
        for template in self.templates:
            if "{}" not in template:
                raise InputError(f"vocabulary {self.name}: template {template!r} has no {{}} for the class name")
        for kind, values in (("colors", self.colors), ("plain names", self.plain), ("display names", self.display)):
            if values is not None and len(values) != len(self.classes):
                raise InputError(
                    f"vocabulary {self.name}: {len(values)} {kind} for {len(self.classes)} classes; give one per class"
                )
        for name, times in Counter(self.display or ()).items():
            if times > 1 or not name.strip():
                fault = "is used twice; display names must differ" if name.strip() else "is empty"
                raise InputError(f"vocabulary {self.name}: display name {name!r} {fault}")

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:_SHOWN]) + (", ..." if len(self) > _SHOWN else "")
        novel = f", {len(self.novel)} novel" if self.novel else ""
        return f"Vocabulary({self.name}: {len(self)} classes{novel}: {shown})"

    def _check_synonyms(self, classes: Sequence[Sequence[str]], kind: str) -> None:
        for index, synonyms in enumerate(classes):
            if isinstance(synonyms, str):
                raise InputError(
                    f"vocabulary {self.name}: {kind} {index} is the string {synonyms!r}; give a tuple of synonyms"
                )
            if not synonyms or not all(synonym.strip() for synonym in synonyms):
                raise InputError(f"vocabulary {self.name}: {kind} {index} has an empty name")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Display names, in index order."""
        return self.display or tuple(synonyms[0] for synonyms in self.classes)

    @property
    def base(self) -> frozenset[int]:
        """Indices of the classes that are not novel."""
        return frozenset(range(len(self.classes))) - self.novel

    def subset(self, classes: Sequence[int]) -> Vocabulary:
        """Return the vocabulary of the given class indices, in the given order."""
        new_index = {old: new for new, old in enumerate(classes)}
        return replace(
            self,
            classes=tuple(self.classes[index] for index in classes),
            novel=frozenset(new_index[index] for index in self.novel if index in new_index),
            things=frozenset(new_index[index] for index in self.things if index in new_index),
            colors=None if self.colors is None else tuple(self.colors[index] for index in classes),
            plain=None if self.plain is None else tuple(self.plain[index] for index in classes),
            display=None if self.display is None else tuple(self.display[index] for index in classes),
        )

    def palette(self) -> np.ndarray:
        """Return the RGB colour of each class, uint8 [K, 3]; a generated colour depends on the class index alone."""
        if self.colors is not None:
            return np.array(self.colors, dtype=np.uint8).reshape(-1, 3)
        return generate_colors(len(self.classes))

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write and `from_json` can read."""
        table: dict[str, Any] = {
            "name": self.name,
            "classes": [list(synonyms) for synonyms in self.classes],
            "novel": sorted(self.novel),
            "things": sorted(self.things),
            "templates": list(self.templates),
            "colors": None if self.colors is None else [list(color) for color in self.colors],
        }
        if self.plain is not None:
            table["plain"] = [list(names) for names in self.plain]
        if self.display is not None:
            table["display"] = list(self.display)
        return table

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Vocabulary:
        """Return the vocabulary that `to_json` described.

        Raises:
            InputError: `value` does not describe a vocabulary.
        """
        try:
            colors, plain, display = value.get("colors"), value.get("plain"), value.get("display")
            return cls(
                name=str(value["name"]),
                classes=tuple(tuple(str(synonym) for synonym in synonyms) for synonyms in value["classes"]),
                novel=frozenset(int(index) for index in value.get("novel", ())),
                things=frozenset(int(index) for index in value.get("things", ())),
                templates=tuple(str(template) for template in value.get("templates", ("{}",))),
                colors=None if colors is None else tuple(parse_color(color) for color in colors),
                plain=None if plain is None else tuple(tuple(str(name) for name in names) for names in plain),
                display=None if display is None else tuple(str(name) for name in display),
            )
        except InputError:  # a ValueError, too
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not a vocabulary ({type(error).__name__}: {error})") from error

    @classmethod
    def from_names(cls, name: str, names: Iterable[str | Sequence[str]], **fields: Any) -> Vocabulary:
        """Make a vocabulary from class names.

        Args:
            name: Name of the vocabulary, also used in error messages.
            names: For each class a string of synonyms separated by commas, or a list of synonyms.
            fields: Further attributes of `Vocabulary`. Two classes may share their first synonym only if `display`
                is among them.

        Raises:
            InputError: There is no class, a name is empty, or two classes have the same display name.
        """
        classes = tuple(split_synonyms(name, entry) for entry in names)
        if not classes:
            raise InputError(f"{name}: no class; name at least one")
        if fields.get("display") is None:
            for display, times in Counter(synonyms[0] for synonyms in classes).items():
                if times > 1:
                    raise InputError(f"{name}: class {display!r} is named twice; class names must differ")
        return cls(name=name, classes=classes, **fields)


def split_synonyms(where: str, entry: Any) -> tuple[str, ...]:
    """Return the synonyms in `entry`, a string separated by commas or a list; errors begin with `where`."""
    parts = entry.split(",") if isinstance(entry, str) else entry
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise InputError(f"{where}: class {entry!r} is neither a name nor a list of synonyms")
    synonyms = tuple(part.strip() for part in parts)
    if not synonyms or not all(synonyms):
        raise InputError(f"{where}: class {entry!r} has an empty name")
    return synonyms


def parse_color(value: Any) -> tuple[int, int, int]:
    """Return an RGB colour as a tuple; InputError if `value` is not three integers from 0 to 255."""
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 3
        or not all(isinstance(part, int) and 0 <= part <= 255 for part in value)
    ):
        raise InputError(f"color {value!r}: three whole numbers from 0 to 255 are needed")
    return (value[0], value[1], value[2])


def make_distinct_names(classes: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return one display name per class, all different.

    The name is the first synonym. Classes that share their first synonym get another one in brackets, as in
    `pot (flowerpot)`. Of those that have no other synonym the first stays `pot`, the second becomes `pot (2)`.

    Args:
        classes: Synonyms of each class.
    """
    shared = Counter(synonyms[0] for synonyms in classes)
    names: dict[str, None] = {}
    numbers: Counter[str] = Counter()  # where to go on counting: from 2 each time would take the square of the classes
    for synonyms in classes:
        first = synonyms[0]
        plurals = (first, f"{first}s", f"{first}es")
        others = [other for other in synonyms[1:] if other not in plurals] if shared[first] > 1 else []
        chosen = next((name for other in others if (name := f"{first} ({other})") not in names), first)
        while chosen in names:
            numbers[first] = max(2, numbers[first] + 1)
            chosen = f"{first} ({numbers[first]})"
        names[chosen] = None
    return tuple(names)


@lru_cache(maxsize=8)
def generate_colors(number: int) -> np.ndarray:
    """Return RGB colours that are easy to tell apart, uint8 [number, 3], read-only.

    Each colour is the candidate farthest in OKLab from all earlier colours, and from black, white and grey, which
    pictures use for pixels without a class. Colour i does not depend on `number`.
    """
    levels = np.arange(16, 256, 17, dtype=np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _rgb_to_oklab(candidates)
    chroma, lightness = np.hypot(lab[:, 1], lab[:, 2]), lab[:, 0]
    allowed = (chroma > _MIN_CHROMA) & (chroma < _MAX_CHROMA)
    allowed &= (lightness > _MIN_LIGHTNESS) & (lightness < _MAX_LIGHTNESS)
    candidates, lab = candidates[allowed], lab[allowed]
    reserved = _rgb_to_oklab(np.array([[0, 0, 0], [255, 255, 255], [128, 128, 128]], dtype=np.uint8))
    from_reserved = np.linalg.norm(lab[:, None] - reserved[None], axis=-1).min(axis=1)
    distance = from_reserved
    colors = np.zeros((number, 3), dtype=np.uint8)
    for index in range(number):
        if index % len(candidates) == 0:  # at the start, and once every candidate is used
            distance = from_reserved
        best = int(distance.argmax())
        colors[index] = candidates[best]
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=-1))
        distance[best] = -1.0
    colors.setflags(write=False)
    return colors


def _rgb_to_oklab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB, uint8 [N, 3], to OKLab (B. Ottosson, 2020), float64 [N, 3]."""
    unit = rgb.astype(np.float64) / 255.0
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: np.ndarray = np.cbrt(linear @ to_lms.T) @ to_lab.T
    return lab


AUTO = "auto"
"""Choice of class names: the one that the framework was published with."""
DATASET = "dataset"
"""Choice of templates: those of the vocabulary itself."""
BARE = "bare"
"""Choice of templates: the class name alone. A vocabulary that sets no templates has these."""

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    # ViLD (Gu et al. 2022, arXiv 2104.13921), in FC-CLIP's selection: some end in a full stop, some do not.
    "vild": (
        "a photo of a {}.",
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
        "a photo of a small {}.",
        "a photo of a medium {}.",
        "a photo of a large {}.",
        "This is a photo of a small {}.",
        "This is a photo of a medium {}.",
        "This is a photo of a large {}.",
        "There is a small {} in the scene.",
        "There is a medium {} in the scene.",
        "There is a large {} in the scene.",
    ),
    # CLIP (Radford et al. 2021, arXiv 2103.00020), sec. 3.1.4.
    "clip": ("a photo of a {}.",),
    BARE: ("{}",),
}
"""Prompt templates by name, each with `{}` in place of the class name."""


def template_names() -> list[str]:
    """Return the values of a framework's option `templates`: the keys of `TEMPLATES`, and `dataset`."""
    return [*TEMPLATES, DATASET]


def get_templates(name: str) -> tuple[str, ...]:
    """Return the prompt templates of a name; InputError if it is not in `TEMPLATES`."""
    if name not in TEMPLATES:
        hint = did_you_mean(name, TEMPLATES)
        raise InputError(f"templates {name!r}: unknown; {hint}known are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def clean_name(name: str) -> str:
    """Simplify a COCO class name as GKC does: `wall-other-merged` to `wall`, `door-stuff` to `door stuff`."""
    return name.removesuffix("-merged").removesuffix("-other").replace("-", " ")


def use_synonyms(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary unchanged."""
    return vocabulary


def use_plain_names(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary prompted by the authors' names, or by its synonyms if it has none."""
    return _replace_synonyms(vocabulary, vocabulary.plain or vocabulary.classes)


def use_clean_names(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary prompted by the authors' names, simplified; by its simplified synonyms if it has none.

    Follows GKC's code for the published vocabularies: it simplifies the names of COCO and VIPSeg (but keeps the
    latter's underscores), replaces the underscores of VSPW by spaces, and takes all others as they are. The names of
    any other vocabulary are simplified as COCO's are.
    """
    clean = _CLEANING.get(vocabulary.name, clean_name)
    classes = vocabulary.plain or vocabulary.classes
    cleaned = tuple(tuple(clean(name) if clean(name).strip() else name for name in names) for names in classes)
    return _replace_synonyms(vocabulary, cleaned)


def join_synonyms(vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary with all synonyms of a class joined into one prompt."""
    return _replace_synonyms(vocabulary, tuple((",".join(synonyms),) for synonyms in vocabulary.classes))


CLASS_NAMES: Mapping[str, Callable[[Vocabulary], Vocabulary]] = {
    "synonyms": use_synonyms,
    "plain": use_plain_names,
    "clean": use_clean_names,
    "joined": join_synonyms,
}
"""Choices of class names by name. Each keeps the display names, and applying it twice is the same as once."""


def name_choices() -> list[str]:
    """Return the values of the option `names`: `auto` and the keys of `CLASS_NAMES`."""
    return [AUTO, *CLASS_NAMES]


def check_names(names: str) -> None:
    """Raise InputError if `names` is not among `name_choices`."""
    if names not in name_choices():
        hint = did_you_mean(names, name_choices())
        raise InputError(f"`names={names}`: unknown; {hint}known are {', '.join(name_choices())}")


def use_class_names(vocabulary: Vocabulary, names: str) -> Vocabulary:
    """Return the vocabulary with its `classes` replaced by the chosen names, a key of `CLASS_NAMES`.

    Raises:
        InputError: The choice is unknown.
    """
    check_names(names)
    return CLASS_NAMES[names](vocabulary)


def _keep_name(name: str) -> str:
    return name


def _replace_underscores(name: str) -> str:
    return name.replace("_", " ")


_CLEANING: Mapping[str, Callable[[str], str]] = {
    "vspw": _replace_underscores,
    **dict.fromkeys(("ade20k-150", "ade20k-847", "cityscapes", "context-59", "context-459"), _keep_name),
}
"""Published vocabularies whose names GKC's code does not simplify as it does COCO's."""


def _replace_synonyms(vocabulary: Vocabulary, classes: tuple[tuple[str, ...], ...]) -> Vocabulary:
    """Replace the synonyms by `classes`, and keep the display names."""
    if classes == vocabulary.classes:
        return vocabulary
    return replace(vocabulary, classes=classes, display=vocabulary.display or make_distinct_names(vocabulary.classes))
