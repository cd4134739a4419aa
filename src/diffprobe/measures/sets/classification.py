"""How sure a classifier is of an image."""

from __future__ import annotations

import torch
from torch import Tensor


def classification_margin(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """The log-odds of a class against the best of the others, in nats: logits [B, C] to float64 [B], on their device.

    log p_y - max over others of log p, which is the difference of two logits. Without `labels` y is the top class and the margin
    0 or more: how far the decision is from turning; with `labels` [B] it is negative where the classifier is wrong.
    Raises ValueError for fewer than two classes, nan or infinite logits, labels of another length or out of range.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(f"a margin needs float logits [B, C] of two classes or more, not {logits.dtype} {list(logits.shape)}")
    if not logits.isfinite().all():
        bad = int((~logits.isfinite().all(1)).sum())
        raise ValueError(f"{bad} of {len(logits)} rows of logits hold nan or inf: leave those samples out, and count them")
    values = logits.double()
    if labels is None:
        top = values.topk(2, dim=1).values
        return top[:, 0] - top[:, 1]
    if labels.shape != logits.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are class numbers [{len(logits)}], one a row of logits, not {labels.dtype} {list(labels.shape)}")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < logits.shape[1]):
        raise ValueError(f"labels reach from {int(labels.min())} to {int(labels.max())}, classes from 0 to {logits.shape[1] - 1}: map them")
    index = labels.to(values.device, torch.int64)[:, None]
    own = values.gather(1, index)[:, 0]
    return own - values.scatter(1, index, -torch.inf).amax(1)
