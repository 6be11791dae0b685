from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ovstrans.costs.target import Target
from ovstrans.errors import InputError
from ovstrans.masks.file import save_mask
from ovstrans.masks.mask import Mask
from ovstrans.reports import lock
from ovstrans.reports.lock import (
    LockEntry,
    TargetSpec,
    Tolerance,
    check_lock,
    compare_entries,
    count_entry,
    load_lock,
    save_lock,
    update_lock,
)

SIZE = (64, 96)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def entry(name: str, **fields: object) -> LockEntry:
    return count_entry(TargetSpec(name, **{"image_size": SIZE, **fields}))  # type: ignore[arg-type]


def places(moved: list[lock.CostChange]) -> set[tuple[str, str]]:
    return {(one.component, one.kind) for one in moved}


def test_nothing_moved() -> None:
    assert compare_entries(entry("RN-mini"), entry("RN-mini")) == []


def test_one_changed_channel_count() -> None:
    was, now = entry("deeplabv3", settings=("model.width=16",)), entry("deeplabv3", settings=("model.width=17",))
    found = places(compare_entries(was, now))
    assert ("aspp", "dense MACs") in found and ("aspp", "total params") in found
    assert not any(component == "trunk" for component, _ in found)


def test_one_extra_decoder_layer() -> None:
    was = entry("gkc-mini")
    layers = 1 + load_value("gkc-mini", "decoder_layers")
    found = compare_entries(was, entry("gkc-mini", settings=(f"model.decoder_layers={layers}",)))
    assert {"transformer_decoder"} <= {one.component for one in found} and all(one.now > one.was for one in found)  # type: ignore[operator]


def load_value(recipe: str, option: str) -> int:
    from ovstrans.recipes.load import load_recipe

    return int(load_recipe(recipe)["model"][option])


def test_a_changed_image_size() -> None:
    was = entry("RN-mini")
    found = compare_entries(was, entry("RN-mini", image_size=(64, 64)))
    assert places(found) == {("input", "width"), ("trunk", "dense MACs"), ("trunk", "effective MACs")}
    dense = next(one for one in found if one.kind == "dense MACs")
    assert dense.was == 3 * dense.now / 2  # type: ignore[operator]
    assert "trunk: dense MACs" in str(dense) and "(-33.33 %)" in str(dense)


def mask(density: float, skip: str = "") -> Mask:
    """A mask of RN-mini's 3x3 convolutions in two stages, without the layer `skip`."""
    from ovstrans.clip.load import create_image_encoder

    with torch.device("meta"):
        shapes = {name: p.shape for name, p in create_image_encoder("RN-mini").named_parameters() if p.dim() == 4}
    keep = {name: torch.arange(shape.numel()).reshape(shape) % 10 < 10 * density for name, shape in shapes.items()}
    chosen = {name: bits for name, bits in keep.items() if "conv2" in name and name.startswith("layer")}
    return Mask({name: bits for name, bits in chosen.items() if name != skip}, "RN-mini", method="random")


def test_one_unmasked_layer() -> None:
    save_mask("all.safetensors", mask(0.5))
    save_mask("but-one.safetensors", mask(0.5, skip="layer2.0.conv2.weight"))
    was, now = entry("RN-mini", mask="all.safetensors"), entry("RN-mini", mask="but-one.safetensors")
    found = {(one.component, one.kind): (one.was, one.now) for one in compare_entries(was, now)}
    assert set(found) == {("trunk", "nonzero params"), ("trunk", "trainable params"), ("trunk", "effective MACs")}
    old, new = found["trunk", "nonzero params"]
    assert new - old == int((~mask(0.5).tensors["layer2.0.conv2.weight"]).sum())  # type: ignore[operator]


class Old(nn.Module):
    """A trunk and a head, written one way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images)))

    def components(self) -> dict[str, nn.Module]:
        return {"head": self.head}


class New(nn.Module):
    """The same, written another way: other names, nested, the 1x1 convolution in the head as a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.ModuleDict({"project": nn.Linear(8, 4)})
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier["project"](self.body(images).movedim(1, -1)).movedim(-1, 1)

    def components(self) -> dict[str, nn.Module]:
        return {"head": self.classifier}


def test_silent_on_a_refactoring(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for module in (Old(), New()):
        target = Target("mine", "model", module, module.components(), "none")
        monkeypatch.setattr(TargetSpec, "load", lambda self, target=target: target)
        made.append(entry("mine"))
    assert compare_entries(*made) == [] and made[0].counts["params"]["head"]["total"] == 36


def test_a_component_that_came_or_went_always_counts() -> None:
    was = entry("RN-mini")
    more = {**was.counts, "macs": {**was.counts["macs"], "extra": {"dense": 1, "effective": 1}}}
    (first, second) = compare_entries(was, replace(was, counts=more), Tolerance(count=1e12))
    assert (first.was, first.now, second.kind) == (None, 1, "effective MACs")
    assert "extra: dense MACs none -> 1" in str(first)


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_tolerances(was: int, now: int) -> None:
    assert Tolerance.parse("0").covers(was, now) == (was == now)
    assert Tolerance.parse("1%").covers(was, now) == (abs(now - was) <= 0.01 * was)
    assert Tolerance.parse("1e3").covers(was, now) == (abs(now - was) <= 1000)


@pytest.mark.parametrize("text", ["", "-1", "much", "1%%", "nan", "inf", "0x1"])
def test_no_tolerance(text: str) -> None:
    with pytest.raises(InputError, match="`tolerance="):
        Tolerance.parse(text)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save_mask("masks.safetensors", mask(0.5))
    entries = [entry("deeplabv3", settings=("model.width=16",), batch=2), entry("RN-mini", mask="masks.safetensors")]
    folder = tmp_path / "deep" / "er"
    path = folder / "costs.lock.json"
    save_lock(path, entries)
    table = json.loads(path.read_text())
    assert list(table["targets"]) == [
        "RN-mini --mask ../../masks.safetensors --image-size 64x96",
        "deeplabv3 --set model.width=16 --batch 2 --image-size 64x96",
    ]
    read = load_lock(path)
    assert all(compare_entries(old, new) == [] for old, new in zip(entries[::-1], read.values(), strict=True))
    (masked, _) = read.values()
    assert Path(str(masked.spec.mask)).resolve() == (tmp_path / "masks.safetensors").resolve()
    again = folder / "again.json"
    save_lock(again, read)
    assert again.read_bytes() == path.read_bytes()


def test_keys_tell_targets_apart() -> None:
    specs = [
        TargetSpec("a", (1, 2)),
        TargetSpec("a", (2, 1)),
        TargetSpec("a", (1, 2), batch=2),
        TargetSpec("a", (1, 2), settings=("model.x=1",)),
        TargetSpec("a", (1, 2), mask="m"),
        TargetSpec("a", (1, 2), plan="m"),
    ]
    assert len({spec.key for spec in specs}) == len(specs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such lock; make one with"),
        ("{", "not valid JSON"),
        ('{"schema": "other"}', "its schema is"),
        ('{"schema": "ovstrans.costs/1"}', "holds no targets"),
        ('{"schema": "ovstrans.costs/1", "targets": {"RN50": {"target": "RN50"}}}', "entry 'RN50' is broken"),
        (
            '{"schema": "ovstrans.costs/1", "targets": {"x": {"target": "x", "image_size": "8x8", "params": 1}}}',
            "entry 'x' is broken",
        ),
    ],
)
def test_broken_locks(text: str | None, message: str) -> None:
    if text is not None:
        Path("costs.lock.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_lock("costs.lock.json")


def test_the_library_updates_and_checks_a_lock() -> None:
    made = update_lock("costs.lock.json", ["RN-mini", "RN101"], image_size="64x96", batch=None, settings=())
    assert made.targets == ("RN-mini --image-size 64x96", "RN101 --image-size 64x96") and made.total == 2
    assert made.changes == () and set(load_lock("costs.lock.json")) == set(made.targets)
    heard: list[tuple[int, int]] = []
    same = check_lock("costs.lock.json", progress=lambda each: heard.append((each.done, each.total)))
    assert same.changes == () and same.changed_targets == () and heard == [(0, 2), (1, 2), (2, 2)]
    moved = check_lock("costs.lock.json", ["RN-mini"], image_size=(64, 64))
    assert moved.targets == moved.changed_targets == ("RN-mini --image-size 64x96",) and moved.total == 2
    assert {change.kind for change in moved.changes} == {"width", "dense MACs", "effective MACs"}
    assert "3 changes in 1 target)" in repr(moved)
    assert check_lock("costs.lock.json", ["RN-mini"], image_size=(64, 64), tolerance="50%").changed_targets
    again = update_lock("costs.lock.json", ["RN-mini"], image_size=(64, 96))
    assert again.changes == () and again.total == 2


def test_the_library_refuses_targets_that_a_lock_does_not_hold() -> None:
    update_lock("costs.lock.json", ["RN-mini"], image_size=64)
    with pytest.raises(InputError, match=r"RN101: is not in costs.lock.json; add it"):
        check_lock("costs.lock.json", ["RN101"])
    with pytest.raises(FileNotFoundError, match="no such lock"):
        check_lock("gone.lock.json")
