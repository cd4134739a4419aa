"""What an accelerator rounds before it multiplies, if not told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions in float32 proper, forwards and backwards: accelerators round their inputs to 10 bits of mantissa if not told.

    What was set before comes back, after an error too. Products of matrices are not rounded unless a caller switched that on.
    """
    if not torch.cuda.is_available():
        yield
        return
    newer = getattr(torch.backends.cudnn, "conv", None)  # since 2.9, where the older switch may not be touched once this one is set
    place, name, proper = (newer, "fp32_precision", "ieee") if newer else (torch.backends.cudnn, "allow_tf32", False)
    before = getattr(place, name)
    setattr(place, name, proper)
    try:
        yield
    finally:
        setattr(place, name, before)
