"""How many bytes of tensors a call holds: live storages counted as operations make and drop them, on any device.

On the meta device, where tensors have shapes and no numbers, that is a plan: nothing is computed and no memory taken. Attention is
counted there as the fused kernels of CPU and GPU run it, without the matrix of tokens by tokens. What a kernel or an allocator
takes beside tensors (workspaces, fragments) is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffprobe.measures.geometry.maps import gradients


def peak(call: Callable[[], object]) -> int:
    """The most bytes of tensors that a call holds at once, its result included, and what was there before left out."""
    live = _Live()
    with _Fused(), live:
        call()
    return live.most


def kept(call: Callable[[], object]) -> int:
    """The bytes of all storages that the graph of a call keeps for its backward pass, weights among them, each counted once."""
    held: dict[int, torch.UntypedStorage] = {}

    def count(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        held[storage._cdata] = storage
        return saved.detach()

    with _Fused(), gradients(), saved_tensors_hooks(count, lambda saved: saved):
        call()
    return sum(storage.nbytes() for storage in held.values())


class _Live(TorchDispatchMode):
    """Counts the storages that operations make while they live. One that was there before (weights, inputs) counts nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}  # an address names a storage for as long as it lives
        self._now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), made=False)
        out = func(*args, **(kwargs or {}))
        self._note(out, made=True)
        self.most = max(self.most, self._now)
        return out

    def _note(self, values: Any, *, made: bool) -> None:
        for one in tree_leaves(values):
            if isinstance(one, Tensor) and one.layout == torch.strided:
                storage = one.untyped_storage()
                key, size = storage._cdata, storage.nbytes() if made else 0
                if key not in self._known:
                    self._known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._gone(key, size))  # type: ignore[misc]
                    self._now += size

    def _gone(self, key: int, size: int) -> None:
        self._now -= size
        del self._known[key]


class _Fused(TorchFunctionMode):
    """On the meta device, attention as CPU and GPU run it; there it would be taken apart into its plain formula."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention and _fusable(*args[:3], **kwargs):
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _fusable(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> bool:
    alike = query.shape[-1] == key.shape[-1] == value.shape[-1] and query.shape[1] == key.shape[1]
    return query.device.type == "meta" and query.ndim == 4 and alike and not settings.get("dropout_p")


def _attention(  # noqa: PLR0913, PLR0917 (the arguments of torch's)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    mask = query.new_zeros(attn_mask.shape) if attn_mask is not None and attn_mask.dtype == torch.bool else attn_mask
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found: Tensor = fused(query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale)[0]
    return found
