"""Local complexity: knots placed by hand, the first layer's formula, rounding, invariances, and real decoders beside hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn

from diffprobe import rng
from diffprobe.measures.geometry.complexity import Complexity, frame, linearity, local_complexity, rounding_floor

Map = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rng.stream("test.complexity", seed).standard_normal(shape))


def layer(inputs: int, outputs: int, seed: int = 0) -> nn.Linear:
    made = nn.Linear(inputs, outputs).double()
    with torch.no_grad():
        made.weight.copy_(normal(outputs, inputs, seed=seed) * (2 / inputs) ** 0.5)
        made.bias.copy_(0.5 * normal(outputs, seed=seed + 100))
    return made


def relu_network(inputs: int, width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(part for i in range(depth) for part in (layer(width if i else inputs, width, i), nn.ReLU())))


def filled(module: nn.Module) -> Any:
    """Weights from the address of each parameter, so that no global generator decides."""
    with torch.no_grad():
        for index, (name, part) in enumerate(module.named_parameters()):
            fan = part[0].numel() if part.ndim > 1 else 1
            part.copy_(normal(*part.shape, seed=index) * (1.5 / fan**0.5 if part.ndim > 1 else 0.1) + (name.endswith("norm.weight")))
    return module.eval()


def axis(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


# Closed forms.


def test_the_first_layer_is_exact() -> None:
    first, z = layer(12, 4000), normal(20, 12, seed=1)
    axes = frame(12, 4, seed=3)
    reach = (first.weight @ axes.T).abs().amax(1)
    for radius in (0.3, 0.03, 0.01):
        found = local_complexity(nn.Sequential(first, nn.ReLU()), z, radius, 4, seed=3)
        truth = (first(z).abs() < radius * reach).sum(1)
        assert truth.min() > 0
        assert found.count.tolist() == truth.tolist()
        assert (found.units, found.sizes, found.names, found.radius) == (4000, (4000,), ("relu",), radius)


def test_knots_placed_by_hand() -> None:
    knots = torch.tensor([-1.0, 0.25, 0.3, 0.5, 2.0], dtype=torch.float64)
    found = local_complexity(lambda z: F.relu(z - knots).sum(1), axis(-1, 0, 0.3, 5), 0.26, 1)
    assert found.count.tolist() == [1, 1, 3, 0]
    assert found.fraction.tolist() == [0.2, 0.2, 0.6, 0]
    assert found.per_length[2] == pytest.approx(3 / 0.52)


def test_an_exact_zero_among_others_counts_and_alone_does_not() -> None:
    assert local_complexity(F.relu, axis(1.0, -1.0), 1.0, 1).count.tolist() == [1, 1]
    assert local_complexity(lambda z: F.relu(0 * z), axis(1.0), 1.0, 1).count.tolist() == [0]


def test_smooth_maps_have_no_units() -> None:
    def smooth(z: Tensor) -> Tensor:
        z = F.layer_norm(F.group_norm(z, 2), (8,)) + torch.sin(z).exp()
        return F.scaled_dot_product_attention(z[:, None], z[:, None], z[:, None]).softmax(-1)

    z = normal(3, 8)
    for f in (smooth, layer(8, 5)):
        found = local_complexity(f, z, 1.0, 3)
        assert found.count.tolist() == [0, 0, 0]
        assert (found.units, found.layers.shape) == (0, (3, 0))
        assert found.fraction.isnan().all()


def test_the_count_grows_with_the_radius_and_the_directions() -> None:
    f, z = relu_network(6, 400, 3), normal(100, 6)
    whole, half = (local_complexity(f, z, radius, 4) for radius in (0.02, 0.01))
    assert float(whole.per_length.mean()) == pytest.approx(float(half.per_length.mean()), rel=0.05)
    some = half.count > 0
    assert torch.equal(linearity(whole, half)[some], (whole.per_length / half.per_length)[some])
    assert local_complexity(f, z, 0.02, 6).count.sum() > 1.1 * whole.count.sum()
    assert linearity(local_complexity(f, z, 2e-9, 4), local_complexity(f, z, 1e-9, 4)).isnan().all()


# Rounding.


WIDE, OTHER = normal(12, 500, seed=2), normal(500, 3000, seed=3)


def cancelling(z: Tensor) -> Tensor:
    """z W, plus a large sum in one order less the same in the other: known to 1e-2 in float32, and to 1e-11 in float64."""
    wide, other = 1e3 * z @ WIDE.to(z), OTHER.to(z)
    return F.relu(z @ OTHER[:12].to(z) + (wide @ other - wide.flip(1) @ other.flip(0)))


def test_the_floor_is_what_rounding_alone_counts() -> None:
    z = normal(6, 12).float()
    exact, rough = (local_complexity(cancelling, z.to(dtype), 1e-5, 4).count for dtype in (torch.float64, torch.float32))
    floor = rounding_floor(cancelling, z, 4)
    assert rough.min() > 10 * exact.max() + 10
    assert floor.sum() == pytest.approx(float(rough.sum()), rel=0.5)
    assert rounding_floor(cancelling, z.double(), 4).sum() == 0
    assert rounding_floor(cancelling, z, 4).tolist() == floor.tolist()


def test_a_sound_map_stands_clear_of_its_floor() -> None:
    f, z = relu_network(12, 1000, 4).float(), normal(6, 12).float()
    assert rounding_floor(f, z, 4).sum() < 0.02 * local_complexity(f, z, 1e-2, 4).count.sum()


# Invariances.


def test_order_and_batch_change_nothing() -> None:
    f, z = relu_network(12, 300, 3), normal(9, 12)
    found = local_complexity(f, z, 0.02, 4)
    assert found.count.min() > 0
    for rows in (1, 8, 24, 1000):
        assert torch.equal(local_complexity(f, z, 0.02, 4, rows=rows).layers, found.layers)
    assert torch.equal(local_complexity(f, z.flip(0), 0.02, 4).count, found.count.flip(0))
    assert torch.equal(local_complexity(f, z[3:4], 0.02, 4).count, found.count[3:4])
    assert not torch.equal(local_complexity(f, z, 0.02, 4, seed=1).count, found.count)


def test_a_batch_holds_whole_neighbourhoods_of_at_most_rows() -> None:
    seen = list[int]()

    def f(z: Tensor) -> Tensor:
        seen.append(len(z))
        return z.relu()

    for rows in (1, 8, 20):
        local_complexity(f, normal(5, 6), 0.1, 4, rows=rows)
    assert seen == [2, *[8] * 5, 2, *[8] * 5, 2, 16, 16, 8]


def test_shape_dtype_and_gradients_of_the_caller_do_not_matter() -> None:
    f, z = relu_network(12, 300, 2), normal(4, 12)
    found = local_complexity(f, z, 0.02, 4)
    boxed = local_complexity(lambda x: f(x.flatten(1)), z.reshape(4, 3, 2, 2).requires_grad_(), 0.02, 4)
    assert torch.equal(boxed.count, found.count)
    with torch.inference_mode():
        assert torch.equal(local_complexity(f, z, 0.02, 4).count, found.count)
    single = local_complexity(f.float(), z.float(), 0.02, 4)
    assert (single.count - found.count).abs().max() <= 1
    assert local_complexity(f, z[:0].float(), 0.02, 4).count.shape == (0,)


# Parity, and real decoders.


def hooked(module: nn.Module, kinds: tuple[type[nn.Module], ...], f: Map, z: Tensor, radius: float, dims: int) -> list[float]:
    """The same count from hooks on modules, one latent at a time."""
    counts, axes = list[float](), frame(z[0].numel(), dims).reshape(dims, *z.shape[1:])
    total = 0.0

    def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total
        signs = inputs[0].sign()
        total += float((signs != signs[:1]).any(0).sum())

    hooks = [part.register_forward_pre_hook(see) for part in module.modules() if isinstance(part, kinds)]
    for one in z:
        total = 0.0
        with torch.no_grad():
            f(torch.cat([one + (radius * axes).to(z), one - (radius * axes).to(z)]))
        counts.append(total)
    for hook in hooks:
        hook.remove()
    return counts


def test_a_tiny_autoencoder_agrees_with_hooks() -> None:
    made = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    tiny, z = filled(made).double(), normal(3, 4, 4, 4)

    def f(x: Tensor) -> Tensor:
        out: Tensor = tiny.decode(x).sample
        return out

    found = local_complexity(f, z, 0.01, 4)
    relus = [position for position, name in enumerate(found.names) if name == "relu"]
    assert set(found.names) == {"relu", "tanh"}
    assert found.layers[:, relus].sum(1).tolist() == hooked(tiny, (nn.ReLU,), f, z, 0.01, 4)
    assert found.count.min() > 0


@pytest.mark.parametrize("attention", [True, False])
def test_an_autoencoder_has_silu_alone(attention: bool) -> None:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    made = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, mid_block_add_attention=attention, **kinds)
    vae, z = filled(made).double(), normal(2, 4, 4, 4)

    def f(x: Tensor) -> Tensor:
        out: Tensor = vae.decode(x).sample
        return out

    found = local_complexity(f, z, 0.02, 4)
    assert set(found.names) == {"silu"}
    assert found.count.tolist() == hooked(vae.decoder, (nn.SiLU,), f, z, 0.02, 4)
    assert found.count.min() > 0
    vae.enable_slicing()
    with pytest.raises(ValueError, match="rows depend on one another at a silu, or run one by one"):
        local_complexity(f, z, 0.02, 4)


def test_a_unet_counts_what_depends_on_the_latent() -> None:
    """The SiLU of the time embedding is no unit, and guidance's second half is."""
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    made = UNet2DConditionModel(
        sample_size=4, block_out_channels=(8,), cross_attention_dim=8, norm_num_groups=4, attention_head_dim=4, layers_per_block=1, **blocks
    )
    unet, text = filled(made), normal(1, 3, 8).float()

    def f(x: Tensor) -> Tensor:
        out: Tensor = unet(x, torch.tensor(10), text.expand(len(x), -1, -1)).sample
        return out

    z = normal(2, 4, 4, 4).float()
    found = local_complexity(f, z, 0.05, 4)
    twice = local_complexity(lambda x: f(torch.cat([x, x])), z, 0.05, 4)
    assert set(found.names) == {"silu", "gelu"}
    assert found.count.min() > 0
    assert twice.units == 2 * found.units
    assert (twice.count - 2 * found.count).abs().max() <= 2


# Bad input.


def test_a_value_that_is_not_finite_loses_its_own_row_alone() -> None:
    f, z = relu_network(12, 300, 2), normal(5, 12)
    truth = local_complexity(f, z, 0.02, 4).count
    z[1, 3], z[3] = torch.nan, torch.inf
    found = local_complexity(f, z, 0.02, 4)
    assert found.count.isnan().tolist() == [False, True, False, True, False]
    assert torch.equal(found.count[::2], truth[::2])
    assert local_complexity(lambda x: 2 * x, z, 0.02, 4).count.isnan().tolist() == [False, True, False, True, False]
    assert local_complexity(f, z[1:2], 0.02, 4).count.isnan().all()
    overflow = local_complexity(lambda x: F.relu(x.exp() - x.exp() * 2), axis(1, 800), 0.02, 1)
    assert overflow.count.isnan().tolist() == [False, True]


LOSSY: dict[str, Map] = {
    "where": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "fmax": lambda z: torch.fmax(z, torch.zeros_like(z)),
    "nan_to_num": lambda z: F.relu(torch.nan_to_num(z)),
}


@pytest.mark.parametrize("name", sorted(LOSSY))
@pytest.mark.parametrize("samples", [1, 4])
def test_layers_behind_an_operation_that_loses_nan_are_counted(name: str, samples: int) -> None:
    """All three are relu, so that what is behind them crosses what it crosses behind a relu."""
    z, second = normal(samples, 12).abs() * axis(*[1.0, -1] * 6).T, layer(12, 300)
    truth = local_complexity(lambda x: F.relu(second(F.relu(x))), z, 0.1, 4)
    found = local_complexity(lambda x: F.relu(second(LOSSY[name](x))), z, 0.1, 4)
    assert torch.equal(found.layers[:, -1], truth.layers[:, 1])
    assert found.sizes[-1] == 300
    assert truth.layers[:, 1].min() > 0


def test_what_does_not_depend_on_the_rows_is_left_out_beside_what_lost_its_nan() -> None:
    """And rows may be folded into another axis."""
    fixed, second = normal(5, 8), layer(12, 30)

    def f(z: Tensor) -> Tensor:
        return F.relu(second(torch.nan_to_num(z).repeat_interleave(3, 0)))[None] + F.relu(fixed).sum()

    found = local_complexity(f, normal(4, 12), 0.1, 4)
    assert (found.names, found.sizes) == (("relu",), (90,))
    truth = local_complexity(lambda z: F.relu(second(z)), normal(4, 12), 0.1, 4)
    assert torch.equal(found.count, 3 * truth.count)


@pytest.mark.parametrize("bend", [F.relu, F.gelu])
def test_what_only_a_first_call_runs_is_forgotten(bend: Map) -> None:
    """A prompt that is encoded once, with as many rows as there are latents, by the same non-linearity or another."""
    kept = list[Tensor]()

    def f(z: Tensor) -> Tensor:
        kept.extend([F.gelu(torch.ones(2, 6, dtype=z.dtype))] * (not kept))
        return bend(z + kept[0].sum())

    found = local_complexity(f, normal(3, 6), 0.1, 2)
    assert (found.names, found.layers.shape) == ((bend.__name__,), (3, 1))


def growing() -> Map:
    calls = list[int]()

    def f(z: Tensor) -> Tensor:
        calls.append(0)
        for _ in calls:
            z = z.relu()
        return z

    return f


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: local_complexity(F.relu, z, 0, 2), "radius 0 makes no neighbourhood"),
        (lambda z: local_complexity(F.relu, z, float("nan"), 2), "radius nan makes no neighbourhood"),
        (lambda z: local_complexity(F.relu, z, 0.1, 0), "1 to 6 orthonormal directions"),
        (lambda z: local_complexity(F.relu, z, 0.1, 7), "1 to 6 orthonormal directions"),
        (lambda z: local_complexity(F.relu, z, 0.1, 2, rows=0), "a batch of 0 rows"),
        (lambda z: local_complexity(F.relu, z.long(), 0.1, 2), "floating.point"),
        (lambda z: rounding_floor(F.relu, z, 7), "1 to 6 orthonormal directions"),
        (lambda z: local_complexity(nn.Sequential(nn.BatchNorm1d(6).double(), nn.ReLU()), z, 0.1, 2), "set the network to eval"),
        (lambda z: local_complexity(lambda x: torch.stack([F.relu(one) for one in x]), z, 0.1, 2), "run one by one"),
        (lambda z: local_complexity(lambda x: F.relu(x.nan_to_num() + x.nan_to_num().mean(0)), z, 0.1, 2), "one another at a relu"),
        (lambda z: local_complexity(growing(), z, 0.1, 2), "runs other non-linearities on 12 rows than on 2"),
        (lambda z: local_complexity(lambda x: x.relu() if len(x) == 2 else x, z, 0.1, 2), "other non-linearities on 12 rows"),
    ],
)
def test_bad_input_is_one_line(call: Callable[[Tensor], Complexity], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call(normal(3, 6))
    assert "\n" not in str(caught.value)


def test_linearity_needs_half_the_radius() -> None:
    one, other = (local_complexity(F.relu, axis(0.1), radius, 1) for radius in (0.3, 0.2))
    with pytest.raises(ValueError, match=r"half of the first, 0\.15"):
        linearity(one, other)
