from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from ovstrans.errors import InputError
from ovstrans.training.loop import derive_seed, load_state, save_state, seed_step, stopping


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    save_state(tmp_path / "state.pt", {"step": 7, "weights": {"w": weight}, "frozen": ["conv1"], "planned": True})
    state = load_state(tmp_path / "state.pt")
    assert torch.equal(state["weights"]["w"], weight)
    assert state["weights"]["w"].stride() == weight.stride()
    assert (state["step"], state["frozen"], state["planned"]) == (7, ["conv1"], True)


def test_a_broken_state_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"weights": torch.randn(1000)})
    for content in (path.read_bytes()[:2000], b"a text", b""):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_state(path)
        assert str(caught.value) == f"{path}: not an intact state file; start the run anew"


class _Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("harm",)


def test_a_state_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "ovstrans.state/1", "x": _Harmful()}, tmp_path / "state.pt")
    with pytest.raises(InputError):
        load_state(tmp_path / "state.pt")
    assert not (tmp_path / "harm").exists()


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    torch.save({"format": "other/1"}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="other/1"):
        load_state(tmp_path / "state.pt")
    with pytest.raises(InputError, match="no such file"):
        load_state(tmp_path / "none.pt")


def test_seeds_differ_in_every_part_and_stay_what_they_are() -> None:
    seeds = {derive_seed(a, b, c) for a in (0, 1, 11) for b in ("order", "step") for c in (0, 1, 11)}
    assert len(seeds) == 18
    assert derive_seed(0, "step", 1) == derive_seed(0, "step", 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # what a run of an earlier version drew must be drawn again when it is resumed
    assert derive_seed(0, "order", 0) == 2094333682667709378


def test_a_step_draws_the_same_whatever_came_before() -> None:
    seed_step(3, 5)
    first = torch.rand(4)
    torch.rand(100)
    seed_step(3, 5)
    assert torch.equal(torch.rand(4), first)
    seed_step(3, 5, rank=1)
    assert not torch.equal(torch.rand(4), first)


def test_a_signal_waits_for_the_loop() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), stopping() as stop:
        for step in range(5):
            if step == 2:
                signal.raise_signal(signal.SIGINT)
            steps.append(step)
            if stop.requested:
                stop.now()
    assert steps == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_nobody_looked_at_is_delivered_at_the_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with stopping():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1]


def test_the_second_signal_does_not_wait() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), stopping():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
        signal.raise_signal(signal.SIGINT)
        done.append(2)
    assert done == [1]


def test_sigterm_goes_to_the_handler_from_before() -> None:
    class Ended(BaseException):
        pass

    def handler(signum: int, frame: object) -> None:
        raise Ended

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(Ended), stopping() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested
            stop.now()
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_an_error_in_the_block_gives_the_handlers_back() -> None:
    with pytest.raises(ValueError), stopping():
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
