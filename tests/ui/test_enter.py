"""Enter in a line of text does what the button beside it does."""

import pytest
import torch
from safetensors.torch import save_file

from qviz.ui.views.bit_width import BitWidthLesson
from qviz.ui.widgets import TextField


def press_enter(field: TextField) -> None:
    """As the browser says it."""
    field.submitted += 1


def test_a_field_calls_what_it_was_given_with_its_value() -> None:
    field, heard = TextField("Model"), []
    field.on_submit(lambda f: heard.append(f.value))
    field.value = "a/model"
    assert heard == []
    press_enter(field)
    press_enter(field)
    assert heard == ["a/model", "a/model"]


@pytest.fixture(scope="module")
def lesson() -> BitWidthLesson:
    return BitWidthLesson()


def test_enter_opens_the_model_that_was_typed(lesson: BitWidthLesson, tmp_path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file({"layer.weight": torch.randn(8, 16)}, path)
    lesson.source_control.value = str(path)
    assert lesson.source is None
    press_enter(lesson.source_control)
    assert lesson.source == str(path)
    assert lesson.shown.weight.shape == (8, 16)


def test_enter_on_nothing_says_what_to_type(lesson: BitWidthLesson) -> None:
    lesson.source_control.value = " "
    press_enter(lesson.source_control)
    assert "first" in lesson.status.text
