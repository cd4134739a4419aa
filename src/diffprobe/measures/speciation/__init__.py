"""When a sample decides what it is: the public names of `likelihood`, `entropy`, `production`, `gaussian`, `steps`.

Log likelihoods of a stochastic sampler's paths under each condition, the entropy of the conditions given the path, how fast it is
lost on the way from noise to data, what Gaussian classes would do, and what too few steps do. Entropies are in nats. Nothing here
loads torch.
"""

from __future__ import annotations

from diffprobe.measures.speciation.entropy import (
    class_entropy,
    immse_entropy,
    label_deviation,
    log_side_posterior,
    mmse_rate,
    partitioned_entropy,
)
from diffprobe.measures.speciation.gaussian import (
    HALF_GAMMA,
    PEAK_GAMMA,
    control_parameter,
    gaussian_entropy,
    gaussian_entropy_slope,
    gaussian_gamma,
    speciation_time,
)
from diffprobe.measures.speciation.likelihood import Coefficients, log_likelihood_ratio, log_likelihood_steps, pairs, squared_gaps
from diffprobe.measures.speciation.production import (
    Production,
    Profile,
    commitment_values,
    entropy_production,
    falling_limits,
    profile,
    smooth,
    smoothing_bandwidth,
)
from diffprobe.measures.speciation.steps import discretisation_bias, mean_gap, steps_needed
from diffprobe.measures.stats.intervals import Interval

__all__ = [
    "HALF_GAMMA",
    "PEAK_GAMMA",
    "Coefficients",
    "Interval",
    "Production",
    "Profile",
    "class_entropy",
    "commitment_values",
    "control_parameter",
    "discretisation_bias",
    "entropy_production",
    "falling_limits",
    "gaussian_entropy",
    "gaussian_entropy_slope",
    "gaussian_gamma",
    "immse_entropy",
    "label_deviation",
    "log_likelihood_ratio",
    "log_likelihood_steps",
    "log_side_posterior",
    "mean_gap",
    "mmse_rate",
    "pairs",
    "partitioned_entropy",
    "profile",
    "smooth",
    "smoothing_bandwidth",
    "speciation_time",
    "squared_gaps",
    "steps_needed",
]
