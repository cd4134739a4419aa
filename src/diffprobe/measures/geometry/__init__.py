"""How a map stretches, folds and flattens space.

Jacobians of any differentiable map of rows, their singular values through a fixed set of output directions, what those say of the
volume and the rank of what the map does, and what the projection makes of it; the knots of its non-linearities that a neighbourhood
crosses; and the exact regions of a piecewise-linear network. Outputs are taken to be images in [-1, 1].
"""

from __future__ import annotations

from diffprobe.measures.geometry.complexity import Complexity, frame, linearity, local_complexity, rounding_floor
from diffprobe.measures.geometry.directions import directions
from diffprobe.measures.geometry.jacobian import jacobian, projected_jacobian
from diffprobe.measures.geometry.maps import Map
from diffprobe.measures.geometry.memory import rows_that_fit
from diffprobe.measures.geometry.partition import Partition, partition
from diffprobe.measures.geometry.projection import Foretold, Offset, foretold, projection_offset
from diffprobe.measures.geometry.spectrum import jacobian_spectrum, local_rank, local_scaling, nonzero
from diffprobe.measures.geometry.trace import ImpliedTrace, JacobianTrace, implied_trace, jacobian_trace

__all__ = [
    "Complexity",
    "Foretold",
    "ImpliedTrace",
    "JacobianTrace",
    "Map",
    "Offset",
    "Partition",
    "directions",
    "foretold",
    "frame",
    "implied_trace",
    "jacobian",
    "jacobian_spectrum",
    "jacobian_trace",
    "linearity",
    "local_complexity",
    "local_rank",
    "local_scaling",
    "nonzero",
    "partition",
    "projected_jacobian",
    "projection_offset",
    "rounding_floor",
    "rows_that_fit",
]
