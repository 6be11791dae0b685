"""The project's own lock, which CI checks by counting (`make costs`): here, that it holds everything."""

from __future__ import annotations

from pathlib import Path

from ovstrans.recipes.load import load_recipe, recipe_names
from ovstrans.reports.lock import load_lock, save_lock

LOCK = Path(__file__).with_name("costs.lock.json")


def test_every_recipe_and_the_bare_trunk_at_the_papers_size() -> None:
    entries = load_lock(LOCK)
    recipes = {name for name in recipe_names() if "framework" in load_recipe(name).get("model", {})}
    assert {entry.spec.name for entry in entries.values()} == {*recipes, "RN50"}
    assert {entry.spec.image_size for entry in entries.values()} == {(800, 1216)}


def test_the_trunk_costs_what_arithmetic_says() -> None:
    """Convolution by convolution, 104.0585 GMAC and 23,527,264 parameters (23,474,016 and 53,248 of norms)."""
    counts = load_lock(LOCK)["RN50 --image-size 800x1216"].counts
    assert counts["macs"]["trunk"] == {"dense": 104_058_470_400, "effective": 104_058_470_400}
    assert counts["params"]["trunk"]["total"] == 23_474_016 + 53_248


def test_it_is_written_as_this_version_writes(tmp_path: Path) -> None:
    save_lock(tmp_path / "costs.lock.json", load_lock(LOCK))
    assert (tmp_path / "costs.lock.json").read_bytes() == LOCK.read_bytes()
