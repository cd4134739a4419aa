"""The trace and the effective rank of A = J J^T without its spectrum: what remains of psi and nu where the rank is large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.measures.geometry.maps import Map
from diffprobe.measures.geometry.memory import batches, fitting, footprint
from diffprobe.measures.geometry.passes import pull, push_rule, pushes
from diffprobe.measures.geometry.projection import projection_moments


class JacobianTrace(NamedTuple):
    """Tr(A) and Tr(A)^2/Tr(A^2) with their standard errors, float64 [B] each; errors are nan where one probe vector cannot tell."""

    trace: Tensor
    effective_rank: Tensor
    trace_error: Tensor
    rank_error: Tensor


class ImpliedTrace(NamedTuple):
    """Tr(A) with its standard error over projections, and Tr(A)^2/Tr(A^2), float64 [B] each."""

    trace: Tensor
    effective_rank: Tensor
    trace_error: Tensor


def jacobian_trace(f: Map, z: Tensor, seeds: Sequence[int], *, rows: int | None = None) -> JacobianTrace:
    """Trace and effective rank of A = J J^T at latents z [B, *in], from a Gaussian probe vector v a seed, shared by all latents.

    E |J^T v|^2 = Tr(A) with variance 2 Tr(A^2), and E |J J^T v|^2 = Tr(A^2) (Hutchinson 1990): a backward and a forward-mode pass a
    seed, where a spectrum takes 120. The trace's standard error is by that law; the rank's is the jackknife's, and so is its
    correction for bias. Errors of latents are not independent, since the vectors are the same. `rows` is for tests.
    Raises ValueError for no seed and for what is no differentiable map of rows, MemoryError where one row is too large.
    """
    seen = footprint(f, z)
    if not len(seeds):
        raise ValueError("the trace needs a seed or more: ten tell it to a few per cent where the rank is large")
    push = push_rule(f, z)
    if push is None:
        raise ValueError(
            "an operation of the map has no second derivative, or no memory for it:"
            " use implied_trace of its jacobian_spectrum through directions"
        )
    probes = rng.normal((seen.outputs,), "geometry.trace", seeds)

    def work(part: Tensor, rows: int) -> Tensor:
        back = pull(f, part, rows, probes, seen.outputs)
        again = torch.cat([_squares(some) for some in pushes(f, part, rows, push, back)], 1)
        return torch.stack([_squares(back), again.to(back.device)])

    parts = list(batches(work, z, rows or fitting(seen.kept, seen.device)))
    first, second = torch.cat(parts, 1) if parts else torch.zeros(2, 0, len(seeds), dtype=torch.float64)
    rank, error = _ratio(first, second)
    return JacobianTrace(first.mean(1), rank, (2 * second.mean(1) / len(seeds)).sqrt(), error)


def implied_trace(singular_values: Tensor, outputs: int, *, k: int | None = None) -> ImpliedTrace:
    """Trace and effective rank of A from singular values [B, K] through k random directions, without a further pass.

    k, by default K, is the number of directions where these exceed the rank. With B = W A W^T, both E Tr(B)^2 and E Tr(B^2) are linear
    in Tr(A)^2 and Tr(A^2) by the projection's second moments: solved, this is unbiased for the trace, its square and Tr(A^2). The
    rank is their ratio: in simulations 9 % too high with 7 directions, under 1 % off with 20 or more; with 120 it scatters by 2 %.
    nan for one direction, which tells no rank, and for rows of nan. Raises ValueError for more directions than outputs, or fewer
    than values.
    """
    k = singular_values.shape[-1] if k is None else k
    if not max(1, singular_values.shape[-1]) <= k <= outputs:
        raise ValueError(f"{k} directions of {outputs} outputs, {singular_values.shape[-1]} values: pass the k that they come from")
    diagonal, crossed = projection_moments(k, outputs)
    squares = singular_values.double().square()
    first, second = squares.sum(-1), squares.square().sum(-1)
    scale = diagonal * (diagonal + crossed) - 2 * crossed**2 if k > 1 else math.nan
    squared = ((diagonal + crossed) * first.square() - 2 * crossed * second) / scale
    fourth = (diagonal * second - crossed * first.square()) / scale
    variance = outputs**2 / k**2 * 2 * crossed * (fourth - squared / outputs)
    return ImpliedTrace(outputs / k * first, squared / fourth, variance.clamp(min=0).sqrt())


def _squares(rows: Tensor) -> Tensor:
    """The squared lengths of rows [..., n], float64."""
    return rows.double().square().sum(-1)


def _ratio(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """mean(first)^2/mean(second) of [B, m] with its standard error, both by the jackknife over the m probes."""
    m = first.shape[1]
    plain = first.mean(1).square() / second.mean(1)
    if m < 2:
        return plain, torch.full_like(plain, math.nan)
    without = ((first.sum(1, keepdim=True) - first) / (m - 1)).square() / ((second.sum(1, keepdim=True) - second) / (m - 1))
    value = m * plain - (m - 1) * without.mean(1)
    return value, ((m - 1) * without.var(1, correction=0)).sqrt()
