"""The sweep: a row for every run, equal to calling the pieces by hand."""

import pytest
import torch
from inputs import calibration_for

import qviz
from qviz.core import metrics


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
        with pytest.raises(TypeError, match=r"qviz\.capture\(…\)\[layer\].*take the layer's entry"):
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
