"""Where the non-linearities of a forward pass bend: seen where torch dispatches them, whoever calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: A tensor and the values at which each of its entries has a knot. Without any: its entries are choices, and a change of one counts.
Knots = tuple[Tensor, tuple[float, ...]]
#: Told of each non-linearity in the order of execution: its name, the tensor that goes into it (or comes out), and its knots.
See = Callable[[str, Tensor, Knots], None]


@contextmanager
def watching(see: See) -> Iterator[None]:
    """`see` hears of all non-linearities that run inside, without gradients.

    Torch's kernel for a whole transformer layer, which hides what is in it, is off meanwhile.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), _Watch(see):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Watch(TorchDispatchMode):
    def __init__(self, see: See) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        if name in _HIDDEN:
            raise ValueError(f"{name} runs a layer in one piece, so that its units are not seen: {_HIDDEN[name]}")
        for values, knots in _BENT[name](*args, **kwargs) if name in _BENT else ():
            self._see(_NAMES.get(name, name), values, (values, knots))
        out = func(*args, **kwargs)
        if name in _POOLS:
            self._see(_POOLS[name], out[0], (out[1], ()))
        return out


def _zero(x: Tensor, *_: Any, **__: Any) -> Sequence[Knots]:
    return [(x, (0.0,))]


def _three(x: Tensor) -> Sequence[Knots]:
    return [(x, (-3.0, 3.0))]


def _either(x: Tensor, size: float = 0.5) -> Sequence[Knots]:
    return [(x, (-float(size), float(size)))]


def _own(x: Tensor, place: float, _: float) -> Sequence[Knots]:
    return [(x, (float(place),))]


def _equal(x: Tensor, other: Tensor) -> Sequence[Knots]:
    return [(x - other, (0.0,))]


def _ends(x: Tensor, min: Any = None, max: Any = None) -> Sequence[Knots]:
    bounds = [bound for bound in (min, max) if bound is not None]
    numbers = tuple(float(bound) for bound in bounds if not isinstance(bound, Tensor))
    return [*([(x, numbers)] if numbers else []), *((x - bound, (0.0,)) for bound in bounds if isinstance(bound, Tensor))]


def _hardtanh(x: Tensor, low: float = -1.0, high: float = 1.0) -> Sequence[Knots]:
    return _ends(x, low, high)


def _gate(x: Tensor, axis: int = -1) -> Sequence[Knots]:
    return [(x.chunk(2, axis)[1], (0.0,))]


_BENT: Mapping[str, Callable[..., Sequence[Knots]]] = {
    **dict.fromkeys(("relu", "leaky_relu", "_prelu_kernel", "rrelu_with_noise", "elu", "celu", "abs"), _zero),
    **dict.fromkeys(("silu", "gelu", "mish", "softplus", "log_sigmoid_forward", "sigmoid", "tanh", "erf", "special_erf"), _zero),
    **dict.fromkeys(("hardswish", "hardsigmoid"), _three),
    **dict.fromkeys(("softshrink", "hardshrink"), _either),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), _equal),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "clip"), _ends),
    "hardtanh": _hardtanh,
    "threshold": _own,
    "glu": _gate,
}
_NAMES: Mapping[str, str] = {"_prelu_kernel": "prelu", "rrelu_with_noise": "rrelu", "log_sigmoid_forward": "log_sigmoid"}
_POOLS: Mapping[str, str] = {
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "adaptive_max_pool2d": "max_pool2d",
    "adaptive_max_pool3d": "max_pool3d",
}
_HIDDEN: Mapping[str, str] = {
    "mkldnn_rnn_layer": "set torch.backends.mkldnn.enabled = False around it",
    "_cudnn_rnn": "set torch.backends.cudnn.enabled = False around it",
    "_transformer_encoder_layer_fwd": "call torch.backends.mha.set_fastpath_enabled(False) before it",
}
