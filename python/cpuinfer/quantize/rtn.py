"""Rounding each weight to the nearest number its scheme has, with the format's own scales or the best of a search."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cpuinfer.quantize.quantised import Quantised, checked
from cpuinfer.quantize.scheme import Scheme
from cpuinfer.quantize.statistics import Statistics


def rtn(w: npt.NDArray[np.floating], scheme: Scheme) -> Quantised:
    """Round to nearest, with the scales that the format's reference takes from a group's extremes."""
    w = checked(w, scheme)
    fit = scheme.fit(w, search=False)
    return Quantised(scheme.codes(w, fit), fit)


def opt_rtn(w: npt.NDArray[np.floating], scheme: Scheme) -> Quantised:
    """Round to nearest, with the scales of least squared error that the scheme's search finds."""
    w = checked(w, scheme)
    fit = scheme.fit(w)
    return Quantised(scheme.codes(w, fit), fit)


def importance(w: npt.NDArray[np.floating], statistics: Statistics, scheme: Scheme) -> Quantised:
    """Round to nearest, with the scales of least squared error weighted by the mean square of each column's input.

    That is what the error costs in the output where inputs are uncorrelated: E |(W - Q) x|^2 = sum over columns of
    E x_j^2 |W_j - Q_j|^2.  An importance matrix of llama.cpp holds the same means.
    """
    w = checked(w, scheme, statistics)
    fit = scheme.fit(w, statistics.mean_square)
    return Quantised(scheme.codes(w, fit), fit)
