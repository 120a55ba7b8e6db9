"""Calibrations on disk: equal to what was computed, and safe to damage or to race for."""

import logging
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from qviz.models import cache as disk
from qviz.models import capture as capture_module
from qviz.models.capture import capture, load_calibration

LAYER = "model.layers.0.mlp.down_proj"
PARTS = ("inputs", "hessian", "act_absmax", "act_absmean")


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, p), getattr(b, p)) for p in PARTS) and (
        (a.tokens, a.layer, a.source) == (b.tokens, b.layer, b.source)
    )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often a model was loaded."""
    counted: list[str] = []
    original = capture_module.load_model
    monkeypatch.setattr(
        capture_module, "load_model", lambda name: (counted.append(str(name)), original(name))[1]
    )
    return counted


def test_a_hit_is_what_was_computed(checkpoints, loaded, words, cache, runs):
    first = load_calibration(checkpoints["llama"], LAYER, text=words)
    again = load_calibration(checkpoints["llama"], LAYER, text=words)
    assert same(first, again)
    assert same(first, capture(loaded["llama"], words, [LAYER], source="your text")[LAYER])
    assert len(runs) == 1, "the second came from disk"
    for other in ("model.layers.1.self_attn.q_proj", "layers.1.mlp.up_proj.weight"):
        load_calibration(checkpoints["llama"], other, text=words)
    assert len(runs) == 1, "one run stores every layer"
    assert len(list(cache.iterdir())) == 1


def test_what_differs_is_computed_anew(checkpoints, words, cache, runs):
    for options in ({}, {"max_tokens": 64}, {"sequence_length": 32}, {"keep_inputs": 8}):
        load_calibration(checkpoints["llama"], LAYER, text=words, **options)
    load_calibration(checkpoints["llama"], LAYER, text=words + "more")
    load_calibration(checkpoints["gpt2"], "h.0.mlp.c_fc", text=words)
    assert len(runs) == 6
    assert len(list(cache.iterdir())) == 6


def test_unknown_layers(checkpoints, words, cache):
    for _ in range(2):  # before the run is stored, and after
        with pytest.raises(ValueError, match="unknown layer"):
            load_calibration(checkpoints["llama"], "model.layers.0.mlp.dwn_proj", text=words)
        load_calibration(checkpoints["llama"], LAYER, text=words)


def test_what_is_asked_is_checked_before_the_model_is_loaded(checkpoints, words, cache, runs):
    for bad, error, says in (
        ({"text": None}, TypeError, "one string"),
        ({"text": words, "max_tokens": 0}, ValueError, "max_tokens must be from 1"),
        ({"text": words, "keep_inputs": "all"}, TypeError, "keep_inputs must be an integer"),
        ({"text": words, "sequence_length": 2}, ValueError, "sequence_length must be from 4"),
    ):
        with pytest.raises(error, match=says):
            load_calibration(checkpoints["llama"], LAYER, **bad)
    assert not runs
    first = load_calibration(checkpoints["llama"], LAYER, text=words, max_tokens=np.int64(20))
    assert first.tokens == 20
    load_calibration(checkpoints["llama"], LAYER, text=words, max_tokens=20)
    assert len(runs) == 1


def flip(data: bytes) -> bytes:
    middle = len(data) - 1000
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [lambda d: b"", lambda d: d[:100], lambda d: d[:-7], lambda d: b"\0" * len(d), flip],
    ids=["empty", "header", "end", "zeros", "one bit"],
)
def test_a_damaged_file_is_computed_again_and_said(checkpoints, words, cache, runs, caplog, spoil):
    layers = ["model.layers.1.mlp.down_proj", LAYER]
    before = [load_calibration(checkpoints["llama"], one, text=words) for one in layers]
    before = [replace(b, **{p: getattr(b, p).clone() for p in PARTS}) for b in before]
    (file,) = cache.iterdir()
    data = file.read_bytes()
    file.unlink()  # what was read is mapped from the old file
    file.write_bytes(spoil(data))
    with caplog.at_level(logging.WARNING, logger="qviz"):
        after = [load_calibration(checkpoints["llama"], one, text=words) for one in layers]
    assert all(same(a, b) for a, b in zip(after, before, strict=True))
    assert "is damaged" in caplog.text
    assert len(runs) == 2
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_only_reported(
    checkpoints, words, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("QVIZ_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="qviz"):
        assert load_calibration(checkpoints["llama"], LAYER, text=words).tokens > 0
    assert "cannot be written" in caplog.text


def test_large_models_store_only_what_was_asked(checkpoints, words, cache, runs, monkeypatch):
    monkeypatch.setattr(capture_module, "STORE_ALL_BELOW", 0)
    for _ in range(2):
        load_calibration(checkpoints["llama"], LAYER, text=words)
    load_calibration(checkpoints["llama"], "model.layers.1.mlp.down_proj", text=words)
    assert len(runs) == 2
    assert len(list(cache.iterdir())) == 2


RACER = """
import sys, torch
from qviz.core.calibration import Calibration
from qviz.models import cache
made = {}
for i in range(4):
    torch.manual_seed(i)
    made[f"l.{i}"] = Calibration(
        torch.randn(64, 256), torch.randn(256, 256), torch.randn(256), torch.randn(256), 9, f"l.{i}"
    )
for _ in range(15):
    cache.write({"model": "race"}, made, {})
    for name, calibration in made.items():
        read = cache.read({"model": "race"}, name)
        assert torch.equal(read.hessian, calibration.hessian) and read.layer == name
"""


def test_processes_may_race(cache):
    racing = [
        subprocess.Popen([sys.executable, "-c", RACER], stderr=subprocess.PIPE) for _ in range(2)
    ]
    errors = [p.communicate()[1] for p in racing]
    assert errors == [b"", b""]
    assert [f.suffix for f in cache.iterdir()] == [".safetensors"], "no half-written files"


READER = """
import sys
from qviz.models.capture import load_calibration
assert load_calibration(sys.argv[1], sys.argv[2], text=sys.argv[3]).tokens
assert "transformers" not in sys.modules
"""


def test_readers_need_no_transformers(checkpoints, words, cache):
    load_calibration(checkpoints["llama"], LAYER, text=words)
    arguments = [str(checkpoints["llama"]), LAYER, words]
    subprocess.run([sys.executable, "-c", READER, *arguments], check=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_shared_cache_can_be_read_by_others(checkpoints, words, cache):
    before = os.umask(0o022)
    try:
        load_calibration(checkpoints["llama"], LAYER, text=words)
    finally:
        os.umask(before)
    (file,) = cache.iterdir()
    assert file.stat().st_mode & 0o777 == 0o644


def test_shared_statistics_are_stored_once(checkpoints, words, cache):
    from safetensors import safe_open

    load_calibration(checkpoints["llama"], LAYER, text=words)
    (file,) = cache.iterdir()
    with safe_open(file, framework="pt") as stored:
        assert len(list(stored.keys())) == 8 * len(PARTS), "eight distinct inputs of 14 layers"


def test_the_directory_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("QVIZ_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert disk.directory().name == "calibration"
    assert "qviz" in str(disk.directory())


def test_what_was_unused_for_longest_goes_when_the_cache_is_full(cache, monkeypatch):
    rows = torch.randn(8, 16)
    one = disk.Calibration(
        inputs=rows, hessian=rows.T @ rows, act_absmax=rows.abs().amax(0),
        act_absmean=rows.abs().mean(0), tokens=8,
    )  # fmt: skip
    keys = [{"run": i} for i in range(4)]
    for age, key in enumerate(keys[:3]):
        disk.write(key, {"fc": one}, {})
        os.utime(disk.path_of(key), (1000 + age, 1000 + age))
    assert disk.read(keys[0], "fc") is not None  # so it is now the one used last
    monkeypatch.setattr(disk, "LIMIT_BYTES", 3 * disk.path_of(keys[0]).stat().st_size + 100)
    disk.write(keys[3], {"fc": one}, {})
    assert [disk.path_of(key).exists() for key in keys] == [True, False, True, True]


def test_what_a_killed_process_left_goes_after_a_day(tmp_path):
    old, new = tmp_path / "a.partial", tmp_path / "b.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    yesterday = time.time() - 2 * disk.ABANDONED
    os.utime(old, (yesterday, yesterday))
    disk.write_whole(tmp_path / "x.safetensors", {"t": torch.zeros(2)}, "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.partial", "x.safetensors"]
