"""Durations, pictures and sort keys as people see them."""

from __future__ import annotations

import numpy as np
import pytest

from service.demo_report import half_blocks
from service.screen import duration, epoch_figures, example_sort


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (8.4, "8 s"), (59.6, "1:00"), (185, "3:05"), (3729, "1:02:09"), (7200, "2:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_epoch_shows_what_it_has() -> None:
    assert epoch_figures({}) == ""
    figures = {"val/accuracy": 0.5, "train/loss": 1.0, "label_noise/exact/p50": 0.01, "unknown": 3.0}
    assert epoch_figures(figures) == "loss 1.000 · val accuracy 50.0% · ε p50 0.0100"


def test_sort_keys_are_checked() -> None:
    assert example_sort("loss") == "loss"
    with pytest.raises(ValueError, match="suspicion, ambiguity"):
        example_sort("beauty")


def test_two_rows_of_pixels_make_a_line() -> None:
    image = np.array([[0.0, 16.0], [16.0, 0.0], [8.0, 8.0], [8.0, 8.0]])
    text = half_blocks(image)
    assert text.plain == "▀▀\n▀▀"
    assert [str(span.style) for span in text.spans][:2] == [
        "rgb(0,0,0) on rgb(255,255,255)",
        "rgb(255,255,255) on rgb(0,0,0)",
    ]
