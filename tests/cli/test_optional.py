from __future__ import annotations

import pytest

from ovstrans.cli.bench import add_values

OPTIONAL = {"--csv": (".csv",), "--plot": (".png", ".pdf")}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a --csv", "a --csv -"),
        ("--csv a b", "--csv - a b"),
        ("--csv table.csv b", "--csv table.csv b"),
        ("--csv -", "--csv -"),
        ("--csv --plot", "--csv - --plot -"),
        ("--plot A.PNG", "--plot A.PNG"),
        ("--plot a.csv", "--plot - a.csv"),
        ("--csv=anything a", "--csv=anything a"),
        ("-- --csv", "-- --csv"),
        ("", ""),
    ],
)
def test_words_after_an_option(given: str, meant: str) -> None:
    assert add_values(given.split(), OPTIONAL) == meant.split()
