from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.load import Clip, random_clip
from ovstrans.clip.text import embed_texts
from ovstrans.training import synonym_filter
from ovstrans.training.synonym_filter import SynonymFilter, likely_indices, names_of_class
from ovstrans.vocabulary.vocabulary import Vocabulary

NAMES = Vocabulary.from_names("toy", ["cat, feline", "dog", "grass"])
KNOWN = {"cat": ("cat", "kitty", "tom"), "dog": ("dog",), "grass": ("grass", "lawn", "turf", "pot")}


@pytest.fixture(scope="module")
def clip() -> Clip:
    found = random_clip(seed=1)
    found.model.logit_scale.data.fill_(5.0)
    return found


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(synonym_filter, "find_synonyms", lambda name: KNOWN[name])
    monkeypatch.setenv("OVSTRANS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "likely-names"


class Eyes:
    """An image encoder of the tests' own: an embedding drawn for each region; counts what it was shown."""

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, regions: Tensor) -> Tensor:
        self.shown += len(regions)
        draws = [torch.Generator().manual_seed(int(region.long().sum())) for region in regions]
        return F.normalize(torch.stack([torch.randn(128, generator=each) for each in draws]), dim=1)


def regions(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


def expected(clip: Clip, region: Tensor, kind: int) -> list[int]:
    names = (*dict.fromkeys((*NAMES.classes[kind], *KNOWN[NAMES.classes[kind][0]])),)
    likely = torch.tensor(5.0).exp() * embed_texts(clip, list(names), ("a photo of {}",)) @ Eyes()(region[None])[0]
    found = likely.softmax(0)
    return [number for number, value in enumerate(found.tolist()) if value > 0.1]


def test_what_is_kept_is_what_is_found(clip: Clip) -> None:
    """The same from CLIP, from memory and from disk; CLIP looks once, and never where there is one name."""
    eyes, cases = Eyes(), [(region, kind) for region in regions(12) for kind in (0, 1, 2)]
    first = SynonymFilter(clip, NAMES, eyes, "cpu float32")
    found = [first(*case) for case in cases]
    assert found == [expected(clip, *case) if case[1] != 1 else [0] for case in cases]
    assert len({tuple(each) for each in found}) > 3 and eyes.shown == 24
    assert [first(*case) for case in cases] == found and eyes.shown == 24
    first.save()
    again = SynonymFilter(clip, NAMES, eyes, "cpu float32")
    assert [again(*case) for case in reversed(cases)] == found[::-1] and eyes.shown == 24


def test_what_is_kept_belongs_to_clip_names_and_precision(clip: Clip, cache: Path) -> None:
    eyes, region = Eyes(), regions(1)[0]
    for number, (model, names, computed) in enumerate(
        [
            (clip, NAMES, "cpu float32"),
            (clip, NAMES, "cpu bfloat16"),
            (random_clip(seed=2), NAMES, "cpu float32"),
            (clip, Vocabulary.from_names("toy", ["cat", "dog", "grass"]), "cpu float32"),
        ],
        1,
    ):
        kept = SynonymFilter(model, names, eyes, computed)
        kept(region, 0)
        kept.save()
        assert eyes.shown == number
    assert len(list(cache.iterdir())) == 4


def test_processes_leave_files_of_their_own(clip: Clip, cache: Path) -> None:
    eyes, many = Eyes(), regions(6)
    one, two = (SynonymFilter(clip, NAMES, eyes, "cpu float32") for _ in range(2))
    for each, part in ((one, many[:4]), (two, many[2:])):
        for region in part:
            each(region, 2)
        each.save()
        each.save()
    (folder,) = cache.iterdir()
    assert len(list(folder.iterdir())) == 2 and eyes.shown == 8
    both = SynonymFilter(clip, NAMES, eyes, "cpu float32")
    assert [both(region, 2) for region in many] == [expected(clip, region, 2) for region in many] and eyes.shown == 8
    both.save()
    assert len(list(folder.iterdir())) == 2  # nothing new, nothing written


def test_it_is_saved_as_it_grows(clip: Clip, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synonym_filter, "_FIRST_SAVE", 2)
    kept, sizes = SynonymFilter(clip, NAMES, Eyes(), "cpu float32"), []
    for region in regions(9):
        kept(region, 0)
        sizes.append(sum(len(load_file(path)["keys"]) for path in cache.rglob("*.safetensors")))
    assert sizes == [0, 2, 2, 4, 4, 4, 4, 8, 8]


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_file_is_found_again(clip: Clip, cache: Path, damage: bytes | None) -> None:
    eyes, region = Eyes(), regions(1)[0]
    first = SynonymFilter(clip, NAMES, eyes, "cpu float32")
    first(region, 0)
    first.save()
    (file,) = cache.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3] if damage is None else damage)
    assert SynonymFilter(clip, NAMES, eyes, "cpu float32")(region, 0) == expected(clip, region, 0) and eyes.shown == 2


@pytest.mark.parametrize(
    "held",
    [
        {},
        {"likely": torch.zeros(1, 1, dtype=torch.uint8)},
        {"likely": torch.ones(1, 1)},
        {"likely": torch.ones(1, 2, dtype=torch.uint8)},
        {"likely": torch.tensor(1, dtype=torch.uint8)},
        {"likely": torch.ones(1, 1, dtype=torch.uint8), "keys": torch.tensor(1, dtype=torch.uint8)},
    ],
)
def test_a_file_that_holds_something_else_is_found_again(clip: Clip, cache: Path, held: dict[str, Tensor]) -> None:
    eyes, region = Eyes(), regions(1)[0]
    first = SynonymFilter(clip, NAMES, eyes, "cpu float32")
    first(region, 0)
    first.save()
    (file,) = cache.rglob("*.safetensors")
    save_file({"keys": load_file(file)["keys"], **held} if held else {"a": torch.ones(1)}, file)
    assert SynonymFilter(clip, NAMES, eyes, "cpu float32")(region, 0) == expected(clip, region, 0) and eyes.shown == 2


def test_without_a_cache_folder_it_works(clip: Clip, cache: Path) -> None:
    cache.parent.write_text("in the way")
    kept = SynonymFilter(clip, NAMES, Eyes(), "cpu float32")
    assert kept(regions(1)[0], 2) == expected(clip, regions(1)[0], 2)
    kept.save()


def test_the_names_of_a_class() -> None:
    assert names_of_class(("cat", "feline")) == ("cat", "feline", "kitty", "tom")
    assert names_of_class(("dog",)) == ("dog",)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_there_is_always_a_likely_name(logits: list[float]) -> None:
    found = likely_indices(torch.tensor(logits))
    weights = torch.tensor(logits).double().exp()
    shares = (weights / weights.sum()).tolist()
    above = [number for number, share in enumerate(shares) if share > 0.1 + 1e-6]
    assert set(above) <= set(found) and found
    assert all(shares[number] > 0.1 - 1e-6 for number in found) or (len(found) == 1 and not above)
