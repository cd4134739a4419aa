"""The only source of randomness: whatever is drawn has an address (role, seed), never a place in an order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream(role: str, *seed: int) -> np.random.Generator:
    """A numpy generator of its own for the address (role, *seed); equal addresses give equal streams on every machine."""
    address = ":".join([role, *(str(int(part)) for part in seed)])
    key = int.from_bytes(hashlib.blake2b(address.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def normal(shape: Sequence[int], role: str, seeds: Sequence[int]) -> torch.Tensor:
    """Standard normal noise [len(seeds), *shape], float32 on the CPU: row i depends on (role, seeds[i]) alone.

    Move and cast the result afterwards; then a seed's noise is the same in any batch, order, worker and device.
    """
    import torch

    rows = [stream(role, seed).standard_normal(tuple(shape), dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows) if rows else np.zeros((0, *shape), np.float32))


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator a sample for a deployed pipeline: `torch.Generator().manual_seed(seed)`.

    That is the field's own convention, so that a row of a record can be reproduced in a notebook from its seed.
    """
    import torch

    return [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
