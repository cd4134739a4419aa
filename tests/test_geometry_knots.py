"""What local complexity sees: every non-linearity however it is called, and where in a batch the rows lie."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffprobe import rng
from diffprobe.measures.geometry.complexity import local_complexity

Map = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rng.stream("test.knots", seed).standard_normal(shape))


def axis(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


NONLINEAR: dict[str, tuple[Map, tuple[float, ...], str]] = {
    "relu": (F.relu, (0,), "relu"),
    "relu_": (lambda z: F.relu_(z + 0), (0,), "relu"),
    "torch.relu": (torch.relu, (0,), "relu"),
    "leaky": (nn.LeakyReLU(0.2), (0,), "leaky_relu"),
    "leaky_": (lambda z: F.leaky_relu_(z + 0), (0,), "leaky_relu"),
    "prelu": (nn.PReLU(1, dtype=torch.float64), (0,), "prelu"),
    "rrelu": (nn.RReLU().eval(), (0,), "rrelu"),
    "elu": (nn.ELU(), (0,), "elu"),
    "celu": (nn.CELU(), (0,), "celu"),
    "selu": (nn.SELU(), (0,), "elu"),
    "silu": (F.silu, (0,), "silu"),
    "silu_": (lambda z: nn.SiLU(inplace=True)(z + 0), (0,), "silu"),
    "silu by hand": (lambda z: z * z.sigmoid(), (0,), "sigmoid"),
    "gelu": (F.gelu, (0,), "gelu"),
    "gelu tanh": (nn.GELU("tanh"), (0,), "gelu"),
    "gelu by hand": (lambda z: z * (1 + torch.erf(z / 2**0.5)), (0,), "erf"),
    "mish": (nn.Mish(), (0,), "mish"),
    "softplus": (nn.Softplus(), (0,), "softplus"),
    "log sigmoid": (F.logsigmoid, (0,), "log_sigmoid"),
    "sigmoid": (nn.Sigmoid(), (0,), "sigmoid"),
    "tanh_": (lambda z: (z + 0).tanh_(), (0,), "tanh"),
    "abs": (torch.abs, (0,), "abs"),
    "softsign": (nn.Softsign(), (0,), "abs"),
    "relu6": (nn.ReLU6(), (0, 6), "hardtanh"),
    "relu6_": (lambda z: F.relu6(z + 0, inplace=True), (0, 6), "hardtanh"),
    "hardtanh": (nn.Hardtanh(), (-1, 1), "hardtanh"),
    "hardtanh 2": (nn.Hardtanh(-2, 0.5), (-2, 0.5), "hardtanh"),
    "hardswish": (nn.Hardswish(), (-3, 3), "hardswish"),
    "hardsigmoid": (nn.Hardsigmoid(), (-3, 3), "hardsigmoid"),
    "softshrink": (nn.Softshrink(1.5), (-1.5, 1.5), "softshrink"),
    "hardshrink": (nn.Hardshrink(), (-0.5, 0.5), "hardshrink"),
    "threshold": (nn.Threshold(0.75, 0), (0.75,), "threshold"),
    "clamp": (lambda z: z.clamp(-1, 2), (-1, 2), "clamp"),
    "clamp above": (lambda z: torch.clamp(z, max=2), (2,), "clamp"),
    "clamp_": (lambda z: (z + 0).clamp_(min=-1), (-1,), "clamp"),
    "clamp_min": (lambda z: z.clamp_min(0.5), (0.5,), "clamp_min"),
    "clip": (lambda z: z.clip(-1, 2), (-1, 2), "clamp"),
    "maximum": (lambda z: torch.maximum(z, 3 - z), (1.5,), "maximum"),
    "fmin": (lambda z: torch.fmin(z, torch.full_like(z, 0.75)), (0.75,), "fmin"),
    "glu": (lambda z: F.glu(torch.cat([3 * z, z + 1], 1), 1), (-1,), "glu"),
}


@pytest.mark.parametrize("what", NONLINEAR)
def test_every_non_linearity_has_its_knots_however_it_is_called(what: str) -> None:
    f, knots, name = NONLINEAR[what]
    z = torch.linspace(-7, 7, 141, dtype=torch.float64)[:, None] + 0.013
    found = local_complexity(f, z, 0.2, 1)
    truth = (z - torch.tensor(knots, dtype=torch.float64)).abs() < 0.2
    assert found.count.tolist() == truth.sum(1).tolist()
    assert (found.units, found.names) == (len(knots), (name,))


def test_a_clamp_by_tensors_is_two() -> None:
    low, high = axis(-1.0), axis(2.0)
    found = local_complexity(lambda z: torch.clamp(z, low, high), axis(-1.1, 0.5, 2.1), 0.2, 1)
    assert found.layers.tolist() == [[1, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize(
    "pool",
    [
        lambda z: F.max_pool1d(z, 2),
        lambda z: F.max_pool2d(z[:, :, None], (1, 2)),
        lambda z: nn.AdaptiveMaxPool2d((1, 2))(z[:, :, None]),
        lambda z: F.max_pool3d(z[:, :, None, None], (1, 1, 2)),
    ],
)
def test_max_pooling_counts_windows_whose_largest_entry_changes(pool: Map) -> None:
    def f(z: Tensor) -> Tensor:
        return pool(torch.cat([z, 1 - z, z - 3, -z], 1)[:, None])  # folds at 0.5 and at 1.5

    found = local_complexity(f, axis(0.45, 1.0, 1.6), 0.2, 1)
    assert found.count.tolist() == [1, 0, 1]
    assert found.units == 2


# Where the rows are.


def test_doubled_rows_tokens_and_time_first_are_found() -> None:
    w, z = normal(12, 50, seed=4), normal(5, 12)

    def plain(x: Tensor) -> Tensor:
        return F.relu(x @ w)

    def guided(x: Tensor) -> Tensor:
        both = F.relu(torch.cat([x, x]) @ w)
        return both.chunk(2)[0]

    def tokens(x: Tensor) -> Tensor:
        return F.relu(x.reshape(-1, 4, 3).flatten(0, 1) @ w[:3])

    def time_first(x: Tensor) -> Tensor:
        return F.relu(x.reshape(-1, 4, 3).transpose(0, 1) @ w[:3])

    found = {f.__name__: local_complexity(f, z, 0.2, 4) for f in (plain, guided, tokens, time_first)}
    assert found["plain"].count.min() > 0
    assert torch.equal(found["guided"].count, 2 * found["plain"].count)
    assert found["guided"].units == 2 * found["plain"].units == 100
    assert torch.equal(found["tokens"].count, found["time_first"].count)
    assert found["tokens"].units == found["time_first"].units == 200


def test_what_does_not_depend_on_the_latent_has_no_units() -> None:
    time = normal(16, 8, seed=5)  # as many rows as the batch has

    def f(z: Tensor) -> Tensor:
        return F.relu(z + F.silu(time).sum())

    found = local_complexity(f, normal(2, 6), 0.1, 4)
    assert (found.names, found.units) == (("relu",), 6)


def test_transformer_layers_are_looked_into() -> None:
    """Torch's fused kernel would hide their GELU."""
    made = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True), 2, enable_nested_tensor=False)
    encoder, z = made.eval(), normal(3, 5, 16).float()
    with torch.no_grad():
        for index, part in enumerate(encoder.parameters()):
            part.copy_(normal(*part.shape, seed=index) / 4)
    before = torch.backends.mha.get_fastpath_enabled()
    found = local_complexity(encoder, z, 0.5, 4)
    assert (found.names, found.sizes) == (("gelu", "gelu"), (160, 160))
    assert found.count.min() > 0
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_recurrent_kernels_say_that_they_hide_their_units() -> None:
    with pytest.raises(ValueError, match="mkldnn_rnn_layer runs a layer in one piece"):
        local_complexity(lambda z: nn.LSTM(4, 4)(z)[0], normal(2, 3, 4).float(), 0.1, 2)
