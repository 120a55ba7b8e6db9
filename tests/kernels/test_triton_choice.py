"""Which configuration is taken, and that it is remembered: with clocks and cards of our own."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from qviz.kernels import triton_choice
from qviz.kernels.kernel import Packed
from qviz.kernels.triton_kernels import Config

CARD = torch.device("cuda", 0)
CONFIGS = [Config({"BLOCK_ROWS": rows}) for rows in (1, 2, 4)]


def packed(device=CARD, shape=(4096, 4096), **options):
    return Packed("triton.w4a16", shape, torch.bfloat16, device, {}, options)


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """Rows of a block → the time of it; and what was timed."""
    times, timed = {1: 3.0, 2: 1.0, 4: 2.0}, []

    def pretend(run, given):
        timed.append(run(*given))
        return times[timed[-1]]

    monkeypatch.setattr(triton_choice, "timed", pretend)
    monkeypatch.setattr(triton_choice, "fits", lambda run, given: True)
    monkeypatch.setattr(triton_choice, "_version", lambda: "3.6")
    monkeypatch.setattr(triton_choice, "_chosen", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Card 80GB")
    monkeypatch.setenv("QVIZ_CACHE", str(tmp_path))
    return times, timed, tmp_path / "kernels" / "some_card_80gb.json"


def choose(which):
    def make(config):
        return lambda *given: config.blocks["BLOCK_ROWS"]

    return triton_choice.fastest(which, "a function", CONFIGS, make)()


def test_the_fastest_is_taken_and_timed_once(clock, monkeypatch):
    _, timed, path = clock
    assert choose(packed()) == 2 and timed == [1, 2, 4]
    assert choose(packed()) == 2 and timed == [1, 2, 4]
    # Another process finds it in the file of the card.
    monkeypatch.setattr(triton_choice, "_chosen", {})
    assert choose(packed()) == 2 and len(timed) == 3
    assert list(json.loads(path.read_text()).values()) == [1]


@pytest.mark.parametrize(
    "other",
    [
        packed(shape=(4096, 8192)),
        packed(layout="another"),
        replace(packed(), dtype=torch.float16),
        replace(packed(), kernel="triton.nf4"),
    ],
)
def test_a_choice_holds_for_nothing_else(clock, other):
    times, timed, _ = clock
    choose(packed())
    times.update({1: 0.5})
    assert choose(other) == 1 and len(timed) == 6


def test_another_version_times_again(clock, monkeypatch):
    _, timed, _ = clock
    choose(packed())
    monkeypatch.setattr(triton_choice, "_version", lambda: "3.7")
    choose(packed())
    assert len(timed) == 6


def test_small_weights_and_the_interpreter_take_the_first(clock):
    _, timed, path = clock
    assert choose(packed(shape=(64, 256))) == 1
    assert choose(packed(torch.device("cpu"))) == 1
    assert not timed and not path.exists()


def test_what_does_not_fit_is_passed_over(clock, monkeypatch):
    """A smaller GPU has less shared memory than some configurations want."""
    times, *_ = clock
    times[2] = float("inf")
    assert choose(packed()) == 4
    monkeypatch.setattr(triton_choice, "fits", lambda run, given: run(*given) != 1)
    assert choose(packed(shape=(64, 256))) == 4
    times.update({1: float("inf"), 4: float("inf")})
    with pytest.raises(RuntimeError, match="no configuration of a function fits"):
        choose(packed(shape=(4096, 1024)))


def test_a_damaged_file_is_said_and_written_again(clock, caplog):
    _, _, path = clock
    path.parent.mkdir()
    path.write_text("[1, 2")
    with caplog.at_level(logging.WARNING, "qviz"):
        assert choose(packed()) == 2
    assert "cannot be read" in caplog.text
    assert list(json.loads(path.read_text()).values()) == [1]


def test_a_folder_that_cannot_be_written_costs_only_the_memory(
    clock, caplog, monkeypatch, tmp_path
):
    (tmp_path / "kernels").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "qviz"):
        assert choose(packed()) == 2
    assert "could not be kept" in caplog.text


def test_choices_of_two_processes_are_both_kept(tmp_path):
    path = tmp_path / "kernels" / "card.json"
    triton_choice.write(path, {"one": 1})
    triton_choice.write(path, {"other": 2})
    assert triton_choice.read(path) == {"one": 1, "other": 2}
    assert [each.name for each in path.parent.iterdir()] == ["card.json"]


def test_a_kernel_is_tried_once_for_each_version(clock, monkeypatch):
    assert not triton_choice.tried(CARD, "triton.nf4")
    triton_choice.remember_tried(CARD, "triton.nf4")
    monkeypatch.setattr(triton_choice, "_chosen", {})
    assert triton_choice.tried(CARD, "triton.nf4")
    assert not triton_choice.tried(CARD, "triton.w4a16")
    monkeypatch.setattr(triton_choice, "_version", lambda: "3.7")
    assert not triton_choice.tried(CARD, "triton.nf4")


def test_the_version_is_that_of_the_sources():
    triton_choice._version.cache_clear()
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    assert triton_choice._version().startswith(f"{triton.__version__} {torch.__version__} ")
