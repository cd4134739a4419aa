"""Kernel laws and their fits: the published tables, closed forms, a brute search, bad input."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from diffprobe import rng
from diffprobe.measures.drift import Law, Levels, fit_kernel, fit_many, gaussian_drift, predict, regressors

Array = NDArray[np.float64]
STRENGTH = np.array([0.1, 0.2, 0.3, 0.4])
#: 15 DDIM steps of Stable Diffusion with leading spacing: the steps that the four strengths execute, and 1 - abar where they start.
STEPS = np.array([1, 3, 4, 6])
VARIANCE = np.array([0.00170, 0.14866, 0.24476, 0.46168])
PUBLISHED = Levels(STRENGTH, STEPS, np.sqrt(1 - VARIANCE), np.sqrt(VARIANCE / (1 - VARIANCE)))
SIGMA = np.array([0.1, 0.3, 0.6, 1.0, 1.6, 2.5])

Line = tuple[float, float, float]
#: NoOp-Bench, LPIPS: the mean of the four strengths by the fit on strength^2, the increments between them, and (k, c, R^2) by regressor.
TABLE: dict[str, tuple[tuple[float, float, float], dict[str, Line]]] = {
    "SD15": (
        (0.0744, 0.0287, 0.0693),
        {"strength^2": (1.0540, 0.0510, 0.9379), "steps": (0.0343, 0.0102, 0.9985), "noise variance": (0.3667, 0.0515, 0.9827)},
    ),
    "SD21": (
        (0.1041, 0.0560, 0.1471),
        {"strength^2": (1.9279, 0.0365, 0.9742), "steps": (0.0612, -0.0333, 0.9903), "noise variance": (0.6638, 0.0389, 0.9993)},
    ),
    "SDXL": (
        (0.1368, 0.0562, 0.1267),
        {"strength^2": (1.9598, 0.0599, 0.9400), "steps": (0.0636, -0.0159, 0.9990), "noise variance": (0.6813, 0.0609, 0.9830)},
    ),
}
LINEAR_R2 = {"SD15": 0.9752, "SD21": 0.9709, "SDXL": 0.9779}


def published_means(model: str) -> Array:
    """The four LPIPS means, to the 4 digits in which they were printed."""
    increments, lines = TABLE[model]
    k, c, _ = lines["strength^2"]
    climbs = np.concatenate([[0.0], np.cumsum(increments)])
    return np.asarray(np.round(c + k * np.mean(STRENGTH**2) - climbs.mean() + climbs, 4))


@pytest.mark.parametrize("model", TABLE)
def test_the_published_table_is_refitted_to_its_printed_digits(model: str) -> None:
    y, table = published_means(model), regressors(*PUBLISHED)
    for name, line in TABLE[model][1].items():
        x, law = table[name]
        fit = fit_kernel(x, y, law)
        assert (fit.k, fit.c, fit.r2) == pytest.approx(line, abs=1.01e-4)
    assert fit_kernel(STRENGTH, y, "linear").r2 == pytest.approx(LINEAR_R2[model], abs=1.01e-4)


@pytest.mark.parametrize(("name", "r2"), [("steps", 0.9541), ("noise variance", 0.9818), ("nsr", 0.9676)])
def test_the_published_fits_cannot_tell_the_laws_apart(name: str, r2: float) -> None:
    x, law = regressors(*PUBLISHED)[name]
    exact = x if law == "linear" else x**2
    assert fit_kernel(STRENGTH, exact).r2 == pytest.approx(r2, abs=2e-4)


@pytest.mark.parametrize("law", ["linear", "quadratic"])
def test_an_exact_line_is_found(law: Law) -> None:
    fit = fit_kernel(SIGMA, predict(fit_kernel([0, 1], [0.25, 2.25], law), SIGMA), law)
    assert (fit.k, fit.c, fit.r2) == pytest.approx((2, 0.25, 1))
    assert fit.sse == pytest.approx(0, abs=1e-24)
    assert (fit.n, fit.parameters) == (6, 2)
    assert math.isnan(fit.v)


@pytest.mark.parametrize("v", [0.05, 1.3, 20.0])
def test_the_saturating_law_is_the_drift_of_a_gaussian_world(v: float) -> None:
    fit = fit_kernel(SIGMA, 0.1 + gaussian_drift([v], [0.5], SIGMA**2, "sample"), "saturating")
    assert (fit.k, fit.c, fit.v) == pytest.approx((1.0, 0.1, v), rel=1e-4)
    assert fit.r2 == pytest.approx(1)


def test_the_noise_variance_of_a_preserving_path_is_the_saturating_law_of_unit_variance() -> None:
    fit = fit_kernel(SIGMA, 0.2 + 3 * SIGMA**2 / (1 + SIGMA**2), "saturating")
    assert (fit.k, fit.c, fit.v) == pytest.approx((3, 0.2, 1), rel=1e-5)


def test_the_saturating_law_never_falls() -> None:
    fit = fit_kernel(SIGMA, 1 - SIGMA, "saturating")
    assert fit.k == 0
    assert fit.c == pytest.approx(np.mean(1 - SIGMA))
    assert predict(fit, [0, 1]) == pytest.approx([fit.c, fit.c])


def test_the_saturating_law_is_the_least_of_a_brute_search() -> None:
    y = np.log1p(SIGMA) + 0.02 * rng.stream("test.brute").standard_normal(6)
    fit = fit_kernel(SIGMA, y, "saturating")
    curves = [SIGMA**2 * v / (v + SIGMA**2) for v in np.geomspace(1e-3, 1e3, 4000)]
    brute = min(np.linalg.lstsq(np.stack([curve, np.ones(6)], axis=1), y)[1][0] for curve in curves)
    assert fit.sse <= brute * (1 + 1e-9)
    assert fit.sse == pytest.approx(brute, rel=1e-3)


@pytest.mark.parametrize("law", ["linear", "quadratic", "saturating"])
def test_replicates_are_fitted_one_by_one_and_fast(law: Law) -> None:
    y = np.sqrt(SIGMA) + 0.1 * rng.stream("test.many").standard_normal((1000, 6))
    start = time.perf_counter()
    fits = fit_many(SIGMA, y, law)
    assert time.perf_counter() - start < 0.5
    single = fit_kernel(SIGMA, y[7], law)
    assert (fits.k[7], fits.c[7], fits.r2[7], fits.sse[7]) == pytest.approx((single.k, single.c, single.r2, single.sse))
    assert fits.predictions == pytest.approx(predict(fits, SIGMA))
    assert fits.sse == pytest.approx(((y - fits.predictions) ** 2).sum(1))


@pytest.mark.parametrize("law", ["linear", "quadratic", "saturating"])
def test_an_identity_model_has_no_slope_and_no_r2(law: Law) -> None:
    fit = fit_kernel(SIGMA, np.full(6, 0.1), law)
    assert (fit.k, fit.c, fit.sse) == pytest.approx((0, 0.1, 0))
    assert fit.k == 0
    assert math.isnan(fit.r2)


def test_bad_fits_are_refused() -> None:
    with pytest.raises(ValueError, match="only 1 distinct"):
        fit_kernel([0.1, 0.1], [1, 2])
    with pytest.raises(ValueError, match="3 parameters but only 2"):
        fit_kernel([0.1, 0.1, 0.2], [1, 2, 3], "saturating")
    with pytest.raises(ValueError, match="does not match"):
        fit_kernel([0.1, 0.2], [1, 2, 3])
    with pytest.raises(ValueError, match="finite"):
        fit_kernel([0.1, math.inf], [1, 2])
    with pytest.raises(ValueError, match="fit_many"):
        fit_kernel([0.1, 0.2], [[1, 2]])
