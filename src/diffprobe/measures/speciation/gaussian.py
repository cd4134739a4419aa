"""Speciation of Gaussian classes: entropies, their slopes and speciation times, as functions of one number, the control parameter.

Two classes N(m_k, v I) seen at noise-to-signal ratio sigma have log odds N(+-Gamma/2, Gamma) with Gamma = d^2/(sigma^2 + v),
d = ||m_0 - m_1||: whatever the path, Gamma says how far they are decided (Koulischer et al. 2026, there with d for d^2; the square
is right, since the mean of the log odds must be half their variance).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Clock = Literal["ou", "ve", "flow"]

LN2 = math.log(2)
#: Where |dH/d ln Gamma| is largest: the peak of production on a clock of ln sigma as long as sigma^2 is well above v.
PEAK_GAMMA = 6.033322506
#: Where half of the entropy is left, H = ln(2)/2.
HALF_GAMMA = 4.176053262
#: The quadrature reaches this many standard deviations of the log odds, or as far beyond the prior's log odds, whichever is nearer.
_DEVIATIONS, _ODDS, _NODES = 12.0, 90.0, np.linspace(-1, 1, 301)


def gaussian_entropy(gamma: ArrayLike, *, prior: float = 0.5) -> Array:
    """H(Y | log odds) in nats of two Gaussian classes at control parameters [...] >= 0 (infinite: 0), to 1e-12 of itself or better.

    `prior` is that of one of them. For equal ones H = E_z ln(1 + exp(-(Gamma/2 + sqrt(Gamma) z))), from ln 2 down to 0.
    """
    return _integral(gamma, prior, lambda odds: np.cosh(odds / 2) * _binary_entropy(odds))


def gaussian_entropy_slope(gamma: ArrayLike, *, prior: float = 0.5) -> Array:
    """dH/dGamma = -E[p (1 - p)]/2 at control parameters [...], p the posterior; from -1/8 at 0 (equal priors) towards 0."""
    return -0.5 * _integral(gamma, prior, lambda odds: 0.25 / np.cosh(odds / 2))


def gaussian_gamma(entropy: ArrayLike) -> Array:
    """The control parameter [...] at which two equally likely classes have these entropies; 0 gives infinity.

    Newton's iteration from 0: ln H is convex in Gamma, so that no step goes too far. Raises ValueError outside 0 .. ln 2.
    """
    wanted = np.asarray(entropy, dtype=np.float64)
    if not ((wanted >= 0) & (wanted <= LN2 * (1 + 1e-12))).all():
        raise ValueError("an entropy of two classes lies in 0 .. ln 2 nats: clip an estimate that does not")
    with np.errstate(divide="ignore"):
        log = np.log(wanted)
    found = np.zeros_like(wanted)
    for _ in range(12):
        before, now = found, gaussian_entropy(found)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = (log - np.log(now)) * now / gaussian_entropy_slope(found)
        found = np.where(now > 0, np.maximum(found + step, 0), np.inf)
        if np.allclose(found, before, rtol=1e-14, atol=0):
            break
    return np.asarray(found)


def control_parameter(sigma: ArrayLike, distance2: ArrayLike, variance: ArrayLike) -> Array:
    """Gamma = d^2/(sigma^2 + v) = SNR d^2/(1 + SNR v) at noise-to-signal ratios sigma (infinite: 0), for means a squared distance apart."""
    square = np.square(np.asarray(sigma, dtype=np.float64))
    return np.asarray(np.asarray(distance2, dtype=np.float64) / (square + np.asarray(variance, dtype=np.float64)))


def speciation_time(distance2: float, variance: float, *, covariance2: float = 0.0, clock: Clock = "ve", gamma: float = 1.0) -> float:
    """Where the control parameter of two Gaussian classes reaches `gamma`, on a clock: when they separate on the way from noise.

    First moments: `distance2` between the means, `variance` within the classes (a direction, their mean). Second moments:
    `covariance2` is the squared Frobenius distance of the covariances, which adds to Gamma half of itself over (sigma^2 + v)^2, to
    leading order in high noise. Gamma = 1 is the speciation time of Koulischer et al. 2026; production peaks later, near
    PEAK_GAMMA, and half is decided at HALF_GAMMA. Clocks: "ve" gives sigma, sqrt(d^2 - v) at Gamma 1; "ou" the time of
    x_t = e^-t x_0 + sqrt(1 - e^-2t) eps, ln(d^2 + 1 - v)/2; "flow" t of x_t = (1 - t) x_0 + t eps, sigma/(1 + sigma).
    Raises ValueError where no noise level separates them that little: Gamma stays below `gamma` down to the data.
    """
    if min(distance2, covariance2) < 0 or min(variance, gamma) <= 0:
        raise ValueError("squared distances are 0 or more, the variance and gamma above 0")
    # Gamma = d^2 u + c u^2/2 in u = 1/(sigma^2 + v), solved without cancellation where either distance is small or 0.
    root = distance2 + math.sqrt(distance2**2 + 2 * gamma * covariance2)
    square = root / (2 * gamma) - variance
    if square <= 0:
        raise ValueError(
            f"these classes never separate: without noise their control parameter is below {gamma:g}; "
            "they need a distance above their spread, or a smaller gamma"
        )
    if clock == "ou":
        return 0.5 * math.log1p(square)
    sigma = math.sqrt(square)
    return sigma if clock == "ve" else sigma / (1 + sigma)


def _integral(gamma: ArrayLike, prior: float, tilted: Callable[[Array], Array]) -> Array:
    """E over both classes of a function of the log odds, given as that function times cosh(odds/2), by the trapezium rule.

    Both densities of the log odds, weighted, sum to N(0, Gamma) exp(-Gamma/8) 2 sqrt(prior (1 - prior)) cosh(odds/2) about the prior's
    log odds. So the integrand is an analytic bump (poles at +-i pi), and its size exp(-Gamma/8) stands outside.
    """
    values = np.asarray(gamma, dtype=np.float64)
    if not 0 < prior < 1 or not (values >= 0).all():
        raise ValueError("a prior lies between 0 and 1, and a control parameter is 0 or more")
    finite = np.where(np.isfinite(values), values, 0)[..., None]
    centre = math.log(prior / (1 - prior))
    reach = np.minimum(_DEVIATIONS, (_ODDS + abs(centre)) / np.sqrt(np.maximum(finite, 1e-300)))
    z = reach * _NODES
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * reach * (_NODES[1] - _NODES[0])
    total = (density * tilted(np.sqrt(finite) * z + centre)).sum(-1) * 2 * math.sqrt(prior * (1 - prior))
    return np.asarray(np.where(np.isfinite(values), np.exp(-finite[..., 0] / 8) * total, 0.0))


def _binary_entropy(odds: Array) -> Array:
    size = np.abs(odds)
    return np.asarray(size * np.exp(-size) / (1 + np.exp(-size)) + np.log1p(np.exp(-size)))
