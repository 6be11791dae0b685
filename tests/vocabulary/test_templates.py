from __future__ import annotations

import pytest

from ovstrans.errors import InputError
from ovstrans.vocabulary.vocabulary import DATASET, TEMPLATES, get_templates, template_names


def test_every_template_has_one_place_for_the_name() -> None:
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)
    assert {name: len(templates) for name, templates in TEMPLATES.items()} == {"vild": 14, "clip": 1, "bare": 1}


def test_vilds_templates_are_fourteen_different_sentences() -> None:
    """Two of each size and three phrasings besides; as published, a full stop ends ten of them."""
    vild = get_templates("vild")
    assert len(set(vild)) == 14
    for size in ("small", "medium", "large"):
        assert sum(f"a {size} {{}}" in template for template in vild) == 3
    assert sum(template.endswith(".") for template in vild) == 10


def test_unknown_names_get_a_hint() -> None:
    assert template_names() == [*TEMPLATES, DATASET]
    with pytest.raises(
        InputError, match=r"templates 'vidl': unknown; did you mean 'vild'\? known are vild, clip, bare"
    ):
        get_templates("vidl")
    with pytest.raises(InputError, match="unknown"):
        get_templates(DATASET)  # no set of its own
