"""Plots of what was measured, as pictures; matplotlib is in the extra `bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from machine_limits import Limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (5.5, 4.0)
"""Of one panel."""
MARKERS = "osD^v<>Pp*"


@dataclass(frozen=True, slots=True)
class Point:
    """Of a roofline: something that was computed."""

    runtime: str
    what: str
    """Such as a model, and whether it read a prompt or decoded."""
    intensity: float
    """Operations for each byte read, if weights are read once."""
    rate: float
    """Operations a second."""


def lines(path: Path, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, x: str, y: str) -> None:
    """A panel for each model, a line for each runtime; x doubles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(INCHES[0] * len(panels), INCHES[1]), layout="constrained")
    for axes, (title, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for (name, points), marker in zip(series.items(), MARKERS * len(series), strict=False):
            axes.plot(*zip(*points, strict=True), marker=marker, label=name)
        places = sorted({place for points in series.values() for place, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
        axes.set(title=title, xlabel=x, ylabel=y, ylim=(0, None))
        _finish(axes)
    figure.savefig(path, dpi=110)


def scaling(path: Path, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, x: str, y: str) -> None:
    """Panels of lines side by side, both axes logarithmic; what is empty is left out."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    filled = {title: series for title, series in panels.items() if series}
    figure = Figure(figsize=(INCHES[0] * max(1, len(filled)), 1.2 * INCHES[1]), layout="constrained")
    for axes, (title, series) in zip(
        figure.subplots(1, max(1, len(filled)), squeeze=False)[0], filled.items(), strict=True
    ):
        for (name, points), marker in zip(series.items(), MARKERS * len(series), strict=False):
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=name, alpha=0.8)
        axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
        for axis, marks in ((axes.xaxis, (1, 2, 3, 4, 5, 6, 8)), (axes.yaxis, (1, 1.5, 2, 3, 5, 7))):
            axis.set_major_locator(LogLocator(subs=marks))
            axis.set_major_formatter(EngFormatter(sep=""))
            axis.set_minor_formatter(NullFormatter())
        _finish(axes)
    figure.savefig(path, dpi=110)


def roofline(path: Path, limits: Limits, points: Sequence[Point]) -> None:
    """Both measured limits, and what runtimes reach under them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * INCHES[0], 1.4 * INCHES[1]), layout="constrained")
    axes = figure.subplots()
    reach = [0.5 * min(point.intensity for point in points), 2 * max(point.intensity for point in points)]
    for name, peak in limits.peaks.items():
        ridge = peak / limits.bandwidth
        axes.plot([reach[0], ridge, max(reach[1], ridge)], [reach[0] * limits.bandwidth / 1e9, peak / 1e9, peak / 1e9])
        axes.annotate(f"{name}: {peak / 1e9:,.0f} GOP/s", (max(reach[1], ridge), peak / 1e9), ha="right", va="bottom")
    if not limits.peaks:
        axes.plot(reach, [place * limits.bandwidth / 1e9 for place in reach])
    names = list(dict.fromkeys(point.runtime for point in points))
    for i, name in enumerate(names):
        own = [point for point in points if point.runtime == name]
        places = [point.intensity for point in own], [point.rate / 1e9 for point in own]
        axes.plot(*places, MARKERS[i % len(MARKERS)], label=name, alpha=0.8)
    for what, place in {point.what: point for point in points}.items():
        axes.annotate(what, (place.intensity, 0.01), xycoords=("data", "axes fraction"), rotation=90, fontsize=7)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations for each byte of weights",
        ylabel="GOP/s",
        title=f"{limits.threads} threads, {limits.bandwidth / 1e9:.1f} GB/s",
    )
    _finish(axes)
    figure.savefig(path, dpi=110)


def _finish(axes: Axes) -> None:
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
