"""The sweep: a row for every run, equal to calling the pieces by hand."""

import pytest
import torch
from inputs import calibration_for

import qviz
from qviz.core import metrics
from qviz.methods import registry


def test_rows_equal_the_pieces():
    w = torch.randn(16, 64)
    calibration = calibration_for(torch.randn(40, 64))
    seen = []
    table = qviz.sweep(
        w,
        {"g16": ("affine", {"group_size": 16}), "row": ("affine", {"granularity": "channel"})},
        bits=[2, 5],
        calibration=calibration,
        symmetric=False,
        progress=lambda done, of, what: seen.append((done, of)),
    )
    assert [(r["label"], r["bits"]) for r in table] == [
        ("g16", 2), ("g16", 5), ("row", 2), ("row", 5)
    ]  # fmt: skip
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    q = qviz.quantize(w, bits=5, symmetric=False, group_size=16)
    row = table.where(label="g16", bits=5).rows[0]
    assert row["mse"] == metrics.mse(w, q.dequantize())
    assert row["output_error"] == metrics.output_error(w, q.dequantize(), calibration)
    assert row["bits_per_weight"] == q.bits_per_weight


def test_error_falls_with_bits():
    table = qviz.sweep(torch.randn(32, 128))
    assert table.column("mse") == sorted(table.column("mse"), reverse=True)
    assert "output_error" not in table.rows[0]
    assert table.to_csv().count("\n") == 8
    assert table._repr_markdown_().count("\n") == 8


ON_WEIGHTS = [n for n, m in registry.methods().items() if m.kind in ("weight", "linear")]


@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_every_method_is_swept_with_defaults(name):
    """At those of the widths from 2 to 8 that it has; once where the format fixes the width."""
    w = torch.randn(16, 256)
    table = qviz.sweep(w, name, calibration=calibration_for(torch.randn(40, 256)))
    method = registry.get(name)
    assert bool(method.bits) == ("bits" in method.defaults)
    widths = [b for b in range(2, 9) if b in method.bits]
    assert table.column("bits") == (widths or [table.rows[0]["bits"]])
    assert all(row["relative_error"] < 1 for row in table)


@pytest.mark.parametrize("name", [n for n, m in registry.methods().items() if m.bits])
def test_the_widths_that_a_method_declares_are_those_that_it_takes(name):
    method, w = registry.get(name), torch.randn(128, 128)
    given = calibration_for(torch.randn(40, 128)) if method.needs else None
    options = {"vector": {"dim": 2, "iters": 1}}.get(name, {})
    for bits in range(14):
        if bits in method.bits:
            registry.quantize(w, name, given, bits=bits, **options)
        else:
            with pytest.raises(ValueError, match=f"bits must be .*, got {bits}"):
                registry.quantize(w, name, given, bits=bits, **options)


def test_several_methods_are_swept_each_at_its_own_widths():
    table = qviz.sweep(torch.randn(8, 128), ["affine", "hqq", "nf4"])
    assert table.where(method="affine").column("bits") == [2, 3, 4, 5, 6, 7, 8]
    assert table.where(method="hqq").column("bits") == [2, 3, 4, 5, 6, 8]
    assert table.where(method="nf4").column("bits") == [4]


def test_a_width_that_was_asked_for_and_is_lacking_is_an_error_before_the_first_run():
    seen = []
    with pytest.raises(ValueError, match="hqq has no 7-bit codes: bits must be one of 1, 2, 3"):
        qviz.sweep(
            torch.randn(4, 128), ["affine", "hqq"], [4, 7], progress=lambda *a: seen.append(a)
        )
    with pytest.raises(
        ValueError, match="affine has no 1 or 9-bit codes: bits must be from 2 to 8"
    ):
        qviz.sweep(torch.randn(4, 128), "affine", [1, 4, 9])
    with pytest.raises(TypeError, match=r"bits must be an integer, got 4\.5"):
        qviz.sweep(torch.randn(4, 128), "affine", [4.5])
    assert not seen


@pytest.mark.parametrize("name", ["affine", "gptq", "awq"])
def test_a_default_group_that_does_not_fit_names_the_sizes_that_do(name):
    w, given = torch.randn(8, 48), calibration_for(torch.randn(60, 48))
    says = r"128 does not divide the 48 columns.*8, 12, 16, 24, 48; None \(or -1\)"
    calibration = given if registry.get(name).needs else None
    with pytest.raises(ValueError, match=says):
        qviz.quantize(w, name, calibration)
    with pytest.raises(ValueError, match="^group_size " + says):
        qviz.sweep(w, name, calibration=given)
    with pytest.raises(ValueError, match=f"^{name}: group_size " + says):
        qviz.sweep(w, [name, "fp8"], calibration=given)
    for size in (8, 12, 16, 24, 48, None, -1):
        qviz.quantize(w, name, calibration, group_size=size)


def test_names_are_checked_before_the_first_run():
    seen = []
    with pytest.raises(ValueError, match="unknown method"):
        qviz.sweep(torch.randn(4, 128), ["affine", "magic"], progress=lambda *a: seen.append(a))
    assert not seen


@pytest.mark.parametrize(
    ("methods", "bits", "error", "says"),
    [
        ("affine", 4, ValueError, "several bit-widths"),
        ("affine", [], ValueError, "several bit-widths"),
        ([], [4], ValueError, "no methods"),
        ({"a": "affine"}, [4], TypeError, "its own options"),
        ({"a": ("affine", {"bits": 3})}, [4], ValueError, "'a' sets bits itself"),
    ],
)
def test_what_is_asked_is_checked(methods, bits, error, says):
    with pytest.raises(error, match=says):
        qviz.sweep(torch.randn(4, 128), methods, bits=bits)


def test_the_dict_that_capture_returns_is_not_one_calibration():
    w = torch.randn(4, 128)
    captured = {"layer": calibration_for(torch.randn(9, 128))}
    for call in (qviz.sweep, qviz.quantize):
        with pytest.raises(TypeError, match=r"qviz\.capture\(…\)\[layer\].*pass one layer's entry"):
            call(w, calibration=captured)


@pytest.mark.parametrize(
    ("methods", "options", "error", "says"),
    [
        (["affine", "gptq"], {}, ValueError, "gptq needs calibration"),
        (["affine", "hqq"], {"convention": "gptq"}, TypeError, "option for hqq 'convention'"),
        ({"a": ("affine", {"symmetric": "no"})}, {}, TypeError, "symmetric must be True or False"),
    ],
)
def test_nothing_runs_before_all_is_known_to_run(methods, options, error, says):
    seen = []
    with pytest.raises(error, match=says):
        qviz.sweep(torch.randn(4, 128), methods, progress=lambda *a: seen.append(a), **options)
    assert not seen
