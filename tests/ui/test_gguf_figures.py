"""Figures and the weight's table of the GGUF lesson: what is drawn and listed is what was given."""

import numpy as np
import pytest
import torch
from said import numbers_in

from qviz.study.gguf_facts import try_facts
from qviz.study.gguf_files import file_map, type_bits
from qviz.study.gguf_walk import FOUND, PASS, START, TRY, RowWalk
from qviz.ui.figures.gguf import (
    bill_chart,
    file_map_chart,
    files_chart,
    input_sizes,
    on_levels,
    search_curve,
    shift_chart,
    types_chart,
)
from qviz.ui.views.gguf_cell import values_at, weight_rows


@pytest.fixture(scope="module")
def row():
    return torch.randn(512, generator=torch.Generator().manual_seed(4)) * 0.1


def value(text):
    return numbers_in(text)[0].value


@pytest.mark.parametrize("name", ["Q4_K", "Q2_K", "Q6_K", "Q3_K"])
def test_every_number_of_a_weight_follows_from_the_walk(row, name):
    walk = RowWalk(row, type=name).block(1)
    d, dmin, ks, ls = walk.second
    top = 2**walk.layout.bits - 1
    for group, place in ((0, 3), (walk.groups - 1, 9)):
        x = float(row[256 + group * walk.x.shape[1] + place])
        for moment in walk.moments:
            told = values_at(walk, moment, group, place)
            assert value(told["x"]) == pytest.approx(x, rel=1e-3)
            if moment.kind in (START, TRY, FOUND):
                fit = walk.fits[walk.best(group) if moment.kind == FOUND else moment.fit]
                q, s = value(told["q"]), value(told["s"])
                assert q == int(fit.codes[group, place])
                back = s * q + value(told.get("m", "0"))
                assert value(told["value"]) == pytest.approx(back, rel=5e-3, abs=1e-4)
                assert value(told["error"]) == pytest.approx(x - value(told["value"]), abs=1e-4)
                if fit.position is not None:
                    zero = walk.layout.zero
                    near = np.clip(np.rint(value(told["position"])), -zero, top - zero)
                    assert abs(near - q) <= (abs(value(told["position"]) % 1 - 0.5) < 1e-2)
                assert ("t" in told) == (fit.tried is not None)
        last = values_at(walk, walk.moments[-1], group, place)
        assert value(last["d"]) == pytest.approx(d, rel=1e-3)
        assert (value(last["k"]), int(ks[group])) == (int(ks[group]), value(last["k"]))
        assert value(last["dk"]) == pytest.approx(d * int(ks[group]), rel=1e-3)
        again = (x + dmin * int(ls[group])) / (d * int(ks[group]))
        assert value(last["again"]) == pytest.approx(again, rel=1e-3, abs=1e-3)
        stored = int(walk.codes[group, place]) - walk.layout.zero
        assert value(last["stored"]) == stored
        assert abs(np.clip(again, -walk.layout.zero, top - walk.layout.zero) - stored) <= 0.51
        assert value(last["off"]) == pytest.approx(x - value(last["back"]), abs=1e-4)
        if "dl" in last:
            assert value(last["dl"]) == pytest.approx(
                value(last["dmin"]) * value(last["l"]), rel=5e-3
            )


def test_rows_light_up_with_their_moment(row):
    walk = RowWalk(row, type="Q4_K").block(0)
    at = next(moment for moment in walk.moments if moment.kind == PASS)
    rows = weight_rows((walk, walk), (at, at), 1, 2)
    lit = {label for label, _, lights, _ in rows if lights == [0, 1]}
    assert {"x falls at, now", "stored q", "x̂", "error x − x̂", "d · k"} <= lit
    assert "code q" not in lit and all(len(cells) == 2 for _, cells, _, _ in rows)


def test_the_search_is_drawn_in_percent_of_the_plain_error(row):
    walk = RowWalk(row, type="Q4_K").block(0)
    run = [try_facts(walk, m, 2) for m in walk.moments if m.kind in (START, TRY)]
    figure = search_curve([run], [[-1], [0], [21]], moves=False, whole=False)
    nothing, first, last = figure["frames"]
    assert len(nothing["data"][0]["x"]) == 0 and len(first["data"][0]["x"]) == 1
    x, y = last["data"][0]["x"], last["data"][0]["y"]
    want = sorted((one.tried, 100 * one.error / run[0].error) for one in run)
    assert np.allclose(sorted(zip(x, y, strict=True)), want)
    best = min(one.error for one in run)
    assert float(last["data"][2]["y"][0]) == pytest.approx(100 * best / run[0].error)
    assert len(figure["data"][0]["x"]) == 0
    whole = search_curve([run], [[0]], moves=False, whole=True)
    assert len(whole["data"][0]["x"]) == 22


def test_levels_weights_and_errors_are_drawn_where_they_are():
    x, levels = np.array([0.1, -0.2]), np.array([-0.25, 0.0, 0.25])
    figure = on_levels(x, [(None, None), (np.array([0.0, -0.25]), levels)], np.array([1.0, 4.0]))
    assert figure["data"][2]["y"] is x
    small, large = figure["data"][2]["marker"]["size"]
    assert small < large
    before, after = figure["frames"]
    assert all(len(one["y"]) == 0 for one in before["data"])
    lines, errors, values = after["data"]
    assert sorted(set(lines["y"])) == levels.tolist()
    assert errors["y"][:2].tolist() == [0.1, 0.0] and errors["y"][3:5].tolist() == [-0.2, -0.25]
    assert values["y"].tolist() == [0.0, -0.25]


def test_types_bills_inputs_and_shifts():
    figure = types_chart(["a", "b"], [4.5, 4.25], [0.1, 0.2], [0.05, None], "weights")
    assert figure["data"][0]["y"] == [10, 20] and figure["data"][0]["x"] == [4.5, 4.25]
    assert figure["data"][1]["y"] == [5, None]
    assert [f["data"][0] for f in figure["frames"]] == [
        {"x": [4.5], "y": [10]}, {"x": [4.25], "y": [20]}]  # fmt: skip
    bills = bill_chart(["a"], [{"codes": 4.0, "d": 0.5}], {"codes": "codes", "d": "d", "m": "m"})
    assert [(t["name"], t["x"]) for t in bills["data"]] == [("codes", [4.0]), ("d", [0.5])]
    bars = input_sizes(np.array([1.0, 2.0]), 256)["data"][0]
    assert bars["x"].tolist() == [256, 257] and bars["y"].tolist() == [1, 2]
    one = np.array([1.0]), np.array([0.02]), np.array([0.01])
    frames = shift_chart([None, one])["frames"]
    assert frames[0]["data"][0]["x"] == []
    assert [d["y"].tolist() for d in frames[1]["data"]] == [[2.0], [1.0]]


def test_the_map_of_a_file_has_each_type_in_its_cell():
    maps = [file_map("Llama-3.1-8B", name) for name in ("Q4_K_S", "Q4_K_M")]
    figure = file_map_chart(maps)
    rows, kinds = figure["data"][0]["y"], figure["data"][0]["colorbar"]["ticktext"]
    assert kinds == sorted(kinds, key=type_bits)
    for one, frame in zip(maps, figure["frames"], strict=True):
        for name, z, text in zip(
            rows, frame["data"][0]["z"], frame["data"][0]["text"], strict=True
        ):
            types = list(one.types[name])
            assert [t for t in text if t] == types
            assert [kinds[n] for n in z if n is not None] == types
    drawn = files_chart(maps)
    assert drawn["data"][1]["x"] == [4.5, 4.5]
    assert drawn["data"][2]["x"] == [one.bits for one in maps]
    assert drawn["frames"][1]["data"][0] == {"x": [maps[1].bits], "y": ["Q4_K_M"]}
