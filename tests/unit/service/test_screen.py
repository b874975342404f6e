"""Durations, pictures and sort keys as people see them."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import pytest
from rich.console import Console

from service.cli.demo_report import DemoReport, half_blocks, print_report
from service.cli.screen import console, duration, epoch_figures, example_sort, plain_table
from service.result_schemas import ExampleView

SUSPECT = {
    "example_id": "digit-0001",
    "shard": "s",
    "given_class": "4",
    "given_label": 4,
    "clean_class": "3",
    "clean_label": 3,
    "predicted_class": "3",
}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (8.4, "8 s"), (59.6, "1:00"), (185, "3:05"), (3729, "1:02:09"), (7200, "2:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_epoch_shows_what_it_has() -> None:
    assert epoch_figures({}) == ""
    figures = {"val_clean/accuracy": 0.5, "train/loss": 1.0, "label_noise/exact/p50": 0.01, "unknown": 3.0}
    assert epoch_figures(figures) == "loss 1.000 · val accuracy 50.0% · ε p50 0.0100"
    figures = {"test_given_averaged/accuracy": 0.25, "test_given/nll": 2.0, "test_clean_averaged/ece": 0.125}
    assert epoch_figures(figures) == "ece 0.125 · nll 2.000 · test accuracy averaged (given labels) 25.0%"


def test_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = plain_table("address", "last error")
    table.add_row("https://[fd00::1]/hook", "illegal status line: bytearray(b'[/]')")
    console().print(table)
    shown = capsys.readouterr().out
    assert "https://[fd00::1]/hook" in shown
    assert "b'[/]'" in shown


def test_sort_keys_are_checked() -> None:
    assert example_sort("loss") == "loss"
    with pytest.raises(ValueError, match="suspicion, ambiguity"):
        example_sort("beauty")


REPORT = DemoReport.model_validate(
    {
        "api_docs": "http://127.0.0.1:1/docs",
        "timing": {"total_s": 61, "data_s": 1.2, "parts_ready_s": {"API": 2}, "jobs": {"digits-ivon": {"queued_s": 8}}},
        "jobs": [
            {
                "id": "1",
                "name": "digits-ivon",
                "state": "SUCCEEDED",
                "message": None,
                "mlflow": "http://127.0.0.1:2/#/runs/1",
                "test_accuracy": 0.923,
                "test_nll": 0.4,
                "test_ece": 0.23,
                "averaged_accuracy": 0.931,
                "averaged_nll": 0.31,
                "averaged_ece": 0.19,
                "epsilon": {"exact": {"p50": 0.026, "p95": 0.052}},
                "suspects": [dict.fromkeys(ExampleView.model_fields, 1) | SUSPECT],
                "suspect_precision": 0.98,
            },
            {"id": "2", "name": "digits-sgd", "state": "FAILED", "message": "the loss is not finite", "mlflow": None},
        ],
    }
)


@pytest.mark.parametrize("color_system", [None, "truecolor"])
def test_the_demo_s_report_says_it_all(color_system: Literal["truecolor"] | None) -> None:
    out = io.StringIO()
    print_report(Console(file=out, force_terminal=bool(color_system), color_system=color_system, width=100), REPORT)
    for said in (
        "92.3%",
        "93.1% / 0.310 / 0.190",
        "0.026 / 0.052",
        "—",
        "98%",
        "the loss is not finite",
        "http://127.0.0.1:2/#/runs/1",
        "/docs",
    ):
        assert said in out.getvalue(), said
    assert ("▀" in out.getvalue()) == bool(color_system)
    assert REPORT.timing.lines() == "time 1:01 · API up after 2 s · data built in 1 s\ndigits-ivon: queued 8 s"


def test_a_quiet_console_leaves_stdout_to_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(Console(quiet=True), REPORT)
    assert capsys.readouterr() == ("", "")


def test_two_rows_of_pixels_make_a_line() -> None:
    image = np.array([[0.0, 16.0], [16.0, 0.0], [8.0, 8.0], [8.0, 8.0]])
    text = half_blocks(image)
    assert text.plain == "▀▀\n▀▀"
    assert [str(span.style) for span in text.spans][:2] == [
        "rgb(0,0,0) on rgb(255,255,255)",
        "rgb(255,255,255) on rgb(0,0,0)",
    ]
