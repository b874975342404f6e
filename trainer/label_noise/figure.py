"""A picture of one epoch's label noise. Axes are the same in every epoch, so that stepping through them animates."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from trainer.run_schema import Estimator, Histogram, LabelNoiseRecord

SIZE_PX = (900, 500)
_DPI = 100
_SERIES: dict[Estimator, tuple[str, str]] = {
    "linearised": ("linearised, Eq. 20: how far a weight sample moves the prediction", "#0072b2"),
    "exact": ("exact, Eq. 16: how far the average over weight samples moves it", "#d55e00"),
    "training": ("Eq. 20 while training: all training examples, a visit each", "#009e73"),
}
"""Legend and colour (Okabe and Ito's, told apart by colour-blind readers) of each estimator."""
_BINS_PER_BAR = 2
"""Bars of two bins each: 98 thin ones are hard to read at this size."""


def draw(record: LabelNoiseRecord) -> Image.Image:
    """Share of the examples by ‖ε‖₂ on a log axis, one area an estimator, medians marked; RGB of SIZE_PX."""
    figure = Figure(figsize=(SIZE_PX[0] / _DPI, SIZE_PX[1] / _DPI), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for estimator, (label, colour) in _SERIES.items():
        if estimator not in record.overall:
            continue
        histogram = record.overall[estimator]
        median = histogram.quantiles["p50"]
        edges, shares = _bars(histogram)
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(shares, edges, color=colour, linewidth=1.5, label=f"{label} (median {median:.2g})")
        axes.axvline(median, color=colour, linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(1e-8, 2)
    axes.set_yscale("function", functions=(np.sqrt, np.square))  # room for the tails, and for a single tall bar
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("label noise ‖ε‖₂ of an example")
    axes.set_ylabel("share of examples (square-root scale)")
    title = f"Label noise after epoch {record.epoch}: {record.num_examples:,} tracked examples"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if record.overall:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, frameon=False)
    else:
        axes.text(0.5, 0.5, "this method has no posterior", transform=axes.transAxes, ha="center")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]  # matplotlib leaves it untyped
    return Image.open(buffer).convert("RGB")


def _bars(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges and shares of bars of _BINS_PER_BAR bins."""
    counts = np.asarray(histogram.counts).reshape(-1, _BINS_PER_BAR).sum(axis=1)
    return np.asarray(histogram.edges)[::_BINS_PER_BAR], counts / max(histogram.num_examples, 1)
