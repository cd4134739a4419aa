"""Two sets of embeddings compared, or one described: the public names of `moments`, `frechet`, `kernels`, `neighbours`, `diversity`.

Sets are [n, D], arrays or tensors; everything is float64. Nothing here loads torch.
"""

from __future__ import annotations

from diffprobe.measures.sets.diversity import Score, subsample_interval, vendi_score
from diffprobe.measures.sets.frechet import (
    Frechet,
    FrechetInterval,
    frechet_distance,
    frechet_interval,
    frechet_limit,
    frechet_name,
    frechet_parts,
)
from diffprobe.measures.sets.kernels import KernelInterval, SubsetDistance, cmmd, kernel_distance, kernel_interval, kid
from diffprobe.measures.sets.moments import Moments
from diffprobe.measures.sets.neighbours import (
    DensityCoverage,
    NeighbourScores,
    PrecisionRecall,
    density_coverage,
    neighbour_scores,
    precision_recall,
)
from diffprobe.measures.stats.intervals import Interval

__all__ = [
    "DensityCoverage",
    "Frechet",
    "FrechetInterval",
    "Interval",
    "KernelInterval",
    "Moments",
    "NeighbourScores",
    "PrecisionRecall",
    "Score",
    "SubsetDistance",
    "cmmd",
    "density_coverage",
    "frechet_distance",
    "frechet_interval",
    "frechet_limit",
    "frechet_name",
    "frechet_parts",
    "kernel_distance",
    "kernel_interval",
    "kid",
    "neighbour_scores",
    "precision_recall",
    "subsample_interval",
    "vendi_score",
]
