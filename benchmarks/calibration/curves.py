"""Efficiency curves: time = overhead + roofline / efficiency(x), efficiency linear in log2(x) between knots.

Fitted on relative error (logarithm of predicted / measured) with a loss that grows linearly for outliers, so that
neither the largest times nor a few odd sizes decide.
"""

import dataclasses

import numpy
from scipy import optimize


@dataclasses.dataclass
class Residuals:
    """Percentiles of |predicted / measured - 1|."""

    count: int
    p50: float
    p90: float

    @staticmethod
    def of(predicted, measured):
        error = numpy.abs(numpy.asarray(predicted) / numpy.asarray(measured) - 1)
        if error.size == 0:
            return Residuals(0, 0.0, 0.0)
        return Residuals(
            error.size, float(numpy.percentile(error, 50)), float(numpy.percentile(error, 90))
        )


@dataclasses.dataclass
class Curve:
    """x: ascending; constant beyond the ends."""

    overhead_us: float
    x: numpy.ndarray
    efficiency: numpy.ndarray

    def at(self, x):
        return numpy.interp(numpy.log2(x), numpy.log2(self.x), self.efficiency)

    def time_us(self, x, roofline_us):
        return self.overhead_us + roofline_us / self.at(x)


def _shares(x, knots):
    """Row i: the weights with which the knots' values make the value at x[i]."""
    position = numpy.log2(x)
    knots = numpy.log2(knots)
    return numpy.stack(
        [numpy.interp(position, knots, row) for row in numpy.eye(len(knots))], axis=1
    )


def fit(x, roofline_us, time_us, knots, overhead_us=None, most_overhead_us=20.0):
    """Least squares over the knots' efficiencies and, unless given, the overhead."""
    x, roofline_us, time_us, knots = (
        numpy.asarray(a, dtype=float) for a in (x, roofline_us, time_us, knots)
    )
    shares = _shares(x, knots)
    # A knot that no measurement touches would be free to be anything.
    knots, shares = knots[shares.sum(axis=0) > 0], shares[:, shares.sum(axis=0) > 0]
    free_overhead = overhead_us is None

    def error(parameters):
        overhead = parameters[-1] if free_overhead else overhead_us
        return numpy.log((overhead + roofline_us / (shares @ parameters[: len(knots)])) / time_us)

    first = numpy.full(len(knots), 0.5)
    lower, upper = numpy.full(len(knots), 1e-6), numpy.full(len(knots), 4.0)
    if free_overhead:
        first = numpy.append(first, min(1.0, most_overhead_us / 2))
        lower, upper = numpy.append(lower, 0.0), numpy.append(upper, most_overhead_us)
    solution = optimize.least_squares(
        error,
        first,
        bounds=(lower, upper),
        loss="soft_l1",
        f_scale=0.05,
        x_scale="jac",
        max_nfev=2000,
    ).x
    return Curve(
        float(solution[-1]) if free_overhead else float(overhead_us), knots, solution[: len(knots)]
    )
