"""Sets of embeddings [n, D] as float64 arrays, with one line of advice where they cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

Array: TypeAlias = NDArray[np.float64]
#: An array of numbers, or a torch tensor on any device.
Features: TypeAlias = "ArrayLike | torch.Tensor"


def as_array(values: Features) -> NDArray[Any]:
    """A numpy view or copy of real numbers in their own precision (bfloat16, which numpy lacks, as float32); torch is not imported."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        held = values.detach().cpu()
        values = held.float() if held.dtype == torch.bfloat16 else held
    found = np.asarray(values)
    if found.dtype.kind not in "fiub":
        raise ValueError(f"features are real numbers, not {found.dtype}: convert them to float32 first")
    return found


def as_set(features: Features, fewest: int = 1) -> NDArray[Any]:
    """One set [n, D] of at least `fewest` rows in its own precision; values are not looked at. Raises ValueError for another shape."""
    found = as_array(features)
    if found.ndim != 2 or found.shape[1] == 0:
        raise ValueError(f"a set of features is [n, D], one row a sample, not {list(found.shape)}: flatten or stack the embeddings")
    if len(found) < fewest:
        raise ValueError(f"a set of features needs at least {fewest} rows here, not {len(found)}: add samples")
    return found


def finite_set(features: Features, fewest: int = 1) -> Array:
    """One set [n, D] as float64. Raises ValueError for another shape, too few rows, nan and infinite values."""
    return finite(as_set(features, fewest))


def finite(features: NDArray[Any]) -> Array:
    """Features [..., D] as float64. Raises ValueError where a value is nan or infinite."""
    found = features.astype(np.float64, copy=False)
    if not np.isfinite(found).all():
        raise not_finite(found)
    return found


def not_finite(features: NDArray[Any]) -> ValueError:
    """The error that says how many rows hold a nan or an infinite value."""
    bad = ~np.isfinite(features).all(-1)
    return ValueError(f"{int(bad.sum())} of {bad.size} rows of features hold nan or inf: leave those samples out, and count them")


def same_width(a: NDArray[Any], b: NDArray[Any]) -> None:
    """Raises ValueError where two sets do not share their space."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"two sets need one width, not {a.shape[-1]} and {b.shape[-1]}: embed both with the same model")


def spans(n: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most `step` that cover n rows."""
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
