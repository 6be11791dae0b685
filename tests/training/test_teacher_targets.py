from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ovstrans.clip.load import Clip, random_clip
from ovstrans.clip.text import embed_texts
from ovstrans.datasets.segments import Segments
from ovstrans.environment import Precision
from ovstrans.errors import InputError
from ovstrans.frameworks.base import Batch, TargetRequirements
from ovstrans.training import synonym_filter, teacher_targets
from ovstrans.training.synonym_filter import SynonymFilter
from ovstrans.training.teacher_targets import CHUNK, TeacherTargets, draw_nouns
from ovstrans.vocabulary.vocabulary import Vocabulary

CPU = torch.device("cpu")
NAMES = Vocabulary.from_names("toy", ["cat, feline", "dog", "grass"])
KNOWN = {"cat": ("cat", "kitty", "tom"), "dog": ("dog",), "grass": ("grass", "lawn", "turf", "pot")}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return random_clip(seed=1)


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Synonyms and nouns that the tests can see, and nothing kept by another test."""
    monkeypatch.setenv("OVSTRANS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(synonym_filter, "find_synonyms", lambda name: KNOWN[name])
    monkeypatch.setattr(teacher_targets, "extract_nouns", lambda caption: tuple(caption.split()))


def make(
    clip: Clip, *, seed: int = 0, rank: int = 0, dtype: torch.dtype | None = None, **requires: bool
) -> TeacherTargets:
    return TeacherTargets(
        clip, TargetRequirements(**requires), NAMES, device=CPU, precision=Precision("cpu", dtype), seed=seed, rank=rank
    )


def segments(*kinds: int, size: int = 96, seed: int = 0) -> Segments:
    generator = torch.Generator().manual_seed(seed)
    n = len(kinds)
    regions = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    return Segments(torch.zeros(n, 8, 8, dtype=torch.bool), torch.tensor(kinds).long(), torch.arange(n), regions)


def batch(*found: Segments, captions: tuple[str, ...] = ()) -> Batch:
    return Batch(torch.zeros(len(found), 3, 8, 8), segments=found, captions=captions)


def embedded(clip: Clip, regions: Tensor) -> Tensor:
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (clip.mean, clip.std))
    with torch.no_grad():
        return F.normalize(clip.model.encode_image((regions.float() / 255 - mean) / std), dim=1)


def test_the_teacher_is_clip_as_it_was(clip: Clip) -> None:
    """Whatever happens to the weights afterwards, and whatever mode the model is put in."""
    own = replace(clip, model=copy.deepcopy(clip.model))
    targets = make(own, teacher=True)
    with torch.no_grad():
        own.visual.conv1.weight.zero_()
    own.model.train()
    found = [segments(0, 2), segments(), segments(1, seed=1)]
    filled = targets.add(batch(*found), 0)
    assert filled.teacher is not None and filled.nouns is None and filled.synonyms is None
    assert [len(each) for each in filled.teacher] == [2, 0, 1]
    expected = embedded(clip, torch.cat([each.regions for each in found if each.regions is not None]))
    torch.testing.assert_close(torch.cat(filled.teacher), expected, rtol=1e-5, atol=1e-5)
    assert not any(each.requires_grad for each in filled.teacher)
    torch.testing.assert_close(torch.cat(filled.teacher).norm(dim=1), torch.ones(3))


def test_many_regions_are_encoded_in_chunks(clip: Clip) -> None:
    many = segments(*[0] * (CHUNK + 3))
    assert many.regions is not None
    torch.testing.assert_close(
        make(clip, teacher=True).encode_regions(many.regions)[-3:],
        embedded(clip, many.regions[-3:]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_no_region_gives_no_embedding(clip: Clip) -> None:
    filled = make(clip, teacher=True, synonyms=True).add(batch(segments(), segments()), 0)
    assert filled.teacher is not None and filled.synonyms is not None
    assert [each.shape for each in (*filled.teacher, *filled.synonyms)] == [(0, 128)] * 4


def test_bfloat16_gives_float32(clip: Clip) -> None:
    filled = make(clip, teacher=True, dtype=torch.bfloat16).add(batch(segments(0, 1)), 0)
    assert filled.teacher is not None and filled.teacher[0].dtype is torch.float32
    exact = make(clip, teacher=True).add(batch(segments(0, 1)), 0).teacher
    assert exact is not None and F.cosine_similarity(filled.teacher[0], exact[0]).min() > 0.99


def test_nouns_of_captions(clip: Clip) -> None:
    targets = make(clip, captions=True)
    filled = targets.add(batch(segments(), segments(), segments(), captions=("tree", "", "tree")), 0)
    assert filled.nouns is not None and [len(each) for each in filled.nouns] == [1, 0, 1]
    assert torch.equal(filled.nouns[0][0], embed_texts(clip, ["tree"])[0])
    assert torch.equal(filled.nouns[0], filled.nouns[2]) and filled.nouns[1].shape == (0, 128)


def test_draws_keep_the_name_of_their_random_stream(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another name is another stream: a run would no longer repeat those of before."""
    named: list[tuple[int | str, ...]] = []
    monkeypatch.setattr(teacher_targets, "derive_seed", lambda *parts: named.append(parts) or 0)
    make(clip, captions=True, seed=7, rank=1).add(batch(segments(), captions=("tree",)), 3)
    assert named == [(7, "guide", 3, 1)]


def filled_at(targets: TeacherTargets, step: int) -> list[Tensor]:
    """Everything in a batch that targets add and that depends on the step."""
    found = batch(
        segments(0, 2, 2, seed=step), segments(2, 0, seed=9 + step), captions=("a b c d e f g h", f"x y{step} z")
    )
    filled = targets.add(found, step)
    assert filled.teacher is not None and filled.nouns is not None and filled.synonyms is not None
    return [*filled.teacher, *filled.nouns, *filled.synonyms]


def test_a_step_depends_on_nothing_before_it(clip: Clip) -> None:
    """To the last bit: what a resumed run needs. Other steps, seeds and ranks draw otherwise."""
    everything = {"teacher": True, "captions": True, "synonyms": True}
    through = make(clip, **everything)
    before = [filled_at(through, step) for step in range(4)]
    torch.manual_seed(5)  # the global generator plays no part
    later = filled_at(make(clip, **everything), 3)
    assert all(torch.equal(a, b) for a, b in zip(before[3], later, strict=True))
    for other in (make(clip, seed=1, **everything), make(clip, rank=1, **everything)):
        changed = filled_at(other, 3)
        assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(later, changed, strict=True))
    state = torch.get_rng_state()
    filled_at(through, 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_attached_steps_count_from_the_start(clip: Clip) -> None:
    targets = make(clip, captions=True)
    captions = ("a b c d e f g h",)
    three = list(targets.attach(iter([batch(segments(), captions=captions)] * 3), 5))
    for step, each in enumerate(three, 5):
        again = targets.add(batch(segments(), captions=captions), step)
        assert each.nouns is not None and again.nouns is not None and torch.equal(each.nouns[0], again.nouns[0])


def test_synonyms_are_those_that_clip_finds_likely(clip: Clip) -> None:
    """The bare name of a class whose prompt, among those of the class, gets more than 0.1 at CLIP's temperature."""
    sharp = replace(clip, model=copy.deepcopy(clip.model))
    sharp.model.logit_scale.data.fill_(5.0)
    targets = make(sharp, synonyms=True)
    found = segments(0, 2, 2, 1)
    assert found.regions is not None
    seen = embedded(clip, found.regions)
    counts: list[set[int]] = [set() for _ in range(4)]
    names = [("cat", "feline", "kitty", "tom"), KNOWN["grass"], KNOWN["grass"], KNOWN["dog"]]
    bare = [embed_texts(clip, list(each)) for each in names]
    for step in range(40):
        filled = targets.add(batch(found), step)
        assert filled.synonyms is not None and filled.teacher is None
        for number, row in enumerate(filled.synonyms[0]):
            counts[number].add(int((bare[number] - row).abs().sum(1).argmin()))
            assert (bare[number] - row).abs().sum(1).min() < 1e-4
    for number, each in enumerate(names):
        prompts = embed_texts(clip, list(each), ("a photo of {}",))
        likely = (torch.tensor(5.0).exp() * prompts @ seen[number]).softmax(0)
        assert counts[number] == set((likely > 0.1).nonzero().flatten().tolist())
    assert [len(each) for each in counts] != [len(each) for each in names]  # some are not likely


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=12, unique=True), st.integers(0, 999))
def test_some_nouns_are_chosen(words: list[str], seed: int) -> None:
    chosen = draw_nouns(words, torch.Generator().manual_seed(seed))
    assert len(chosen) <= 5 and set(chosen) <= set(words) and len(set(chosen)) == len(chosen)
    assert bool(chosen) == bool(words)
    assert chosen == [word for word in words if word in chosen]  # in order


def test_a_noun_stays_with_three_in_four() -> None:
    draws = torch.Generator().manual_seed(0)
    counts = [len(draw_nouns(["a", "b", "c"], draws)) for _ in range(2000)]
    dropped = 0.25**3  # all would be: then all stay
    expected = 3 * 0.75 + 3 * dropped
    assert sum(counts) / 2000 == pytest.approx(expected, abs=0.05) and counts.count(0) == 0


def test_the_synonym_filter_are_chosen_evenly(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = make(clip, synonyms=True)
    assert targets.synonym_filter is not None
    bare = targets.synonym_filter.name_embeddings[2]
    monkeypatch.setattr(SynonymFilter, "__call__", lambda self, region, kind: [0, 3])
    filled = targets.add(batch(segments(*[2] * 1000)), 0)
    assert filled.synonyms is not None
    first, last = ((filled.synonyms[0] == bare[number]).all(1).float().mean() for number in (0, 3))
    assert abs(first - 0.5) < 0.06 and first + last == 1


def test_what_was_found_is_left_for_later_runs(clip: Clip) -> None:
    """Also where a run ends early."""
    targets = make(clip, synonyms=True)
    assert targets.synonym_filter is not None
    steps = targets.attach(iter([batch(segments(0, 2, seed=7))] * 3), 0)
    next(steps)
    steps.close()
    later = make(clip, synonyms=True)
    assert later.synonym_filter is not None
    later.synonym_filter._encode_regions = None  # type: ignore[assignment]
    assert torch.equal(
        later.add(batch(segments(0, 2, seed=7)), 0).synonyms[0],
        targets.add(batch(segments(0, 2, seed=7)), 0).synonyms[0],
    )  # type: ignore[index]


def test_what_was_found_with_other_last_bits_is_not_taken(clip: Clip) -> None:
    """Those of an embedding depend on the number of threads."""
    counts, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            targets = make(clip, synonyms=True)
            assert targets.synonym_filter is not None
            counts.append(len(targets.synonym_filter._kept))
            list(targets.attach(iter([batch(segments(0, 2, seed=11))]), 0))
    finally:
        torch.set_num_threads(before)
    assert counts == [0, 0, 2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda clip: make(clip, teacher=True).add(batch(replace(segments(0), regions=None)), 0), "have no regions"),
        (lambda clip: make(replace(clip, has_text=False), captions=True), "captions need the text encoder"),
        (
            lambda clip: make(replace(clip, has_text=False), synonyms=True),
            "needs? the text encoder|need the text encoder",
        ),
    ],
)
def test_bad_input(clip: Clip, call: Callable[[Clip], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(clip)
