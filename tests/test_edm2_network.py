"""EDM2's network against the paper's formulas in numpy, its layout and sizes, and what it refuses to be."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffprobe.adapters.edm2_layers import Block, Fourier, Weighted, blend, join, normalise, silu
from diffprobe.adapters.edm2_network import SIZES, Edm2, Edm2Config, decoder, encoder, preset, untrained
from diffprobe.errors import UserError
from tests.edm2_files import Arrays, Tiny, asked, config, expected, layout, random_arrays

TINIES = {
    "conditional": Tiny(),
    "unconditional": Tiny(classes=0, channels=3, blocks=2),
    "unbalanced": Tiny(
        width=32, head=16, label_balance=0.2, concat_balance=0.7, res_balance=0.4, attn_balance=0.6, sigma_data=0.8, bound=1.1
    ),
}
#: Millions of parameters, as the paper has them.
MILLIONS = {"xs": 125, "s": 280, "m": 498, "l": 777, "xl": 1119, "xxl": 1523}


def filled(tiny: Tiny, arrays: Arrays) -> Edm2:
    built = Edm2(config(tiny))
    built.load_state_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in arrays.items()})
    return built.requires_grad_(False)


@pytest.mark.parametrize("name", TINIES)
def test_it_is_the_network_of_the_paper(name: str) -> None:
    """The same tensors in, the same numbers out: 1e-4 in float32 (rounding alone), 1e-11 in float64 (nothing hides in the rounding)."""
    tiny = TINIES[name]
    arrays = random_arrays(tiny)
    x, sigma, labels = asked(tiny)
    truth, ours = expected(tiny, arrays, x, sigma, labels), filled(tiny, arrays)
    single = None if labels is None else labels.float()
    assert (ours(x.float(), sigma.float(), single) - truth).abs().max() < 1e-4
    assert (truth - x / (1 + (sigma / tiny.sigma_data)[:, None, None, None] ** 2)).abs().max() > 0.05, "the network's own part is seen"
    double = Edm2(config(tiny)).double()
    double.load_state_dict({key: torch.tensor(value) for key, value in arrays.items()})
    assert (double(x, sigma, labels) - truth).abs().max() < 1e-11


@pytest.mark.parametrize("name", TINIES)
def test_settled_weights_change_nothing_beyond_rounding(name: str) -> None:
    tiny = TINIES[name]
    x, sigma, labels = (None if part is None else part.float() for part in asked(tiny))
    ours = filled(tiny, random_arrays(tiny))
    before = ours(x, sigma, labels)
    after = ours.settle()(x, sigma, labels)
    assert (after - before).abs().max() < 1e-5
    assert torch.equal(ours.settle()(x, sigma, labels), after), "a second time does nothing"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_is_near_and_gives_float32(dtype: torch.dtype, tolerance: float) -> None:
    tiny = TINIES["conditional"]
    x, sigma, labels = asked(tiny)
    arrays = random_arrays(tiny)
    given = filled(tiny, arrays).settle(dtype)(x.float(), sigma.float(), None if labels is None else labels.float())
    truth = expected(tiny, arrays, x, sigma, labels)
    assert given.dtype == torch.float32
    assert 1e-6 < ((given - truth).square().mean() / truth.square().mean()).sqrt() < tolerance


def test_without_gain_the_output_is_the_skip_alone() -> None:
    """out_gain 0, as training begins: D(x; sigma) = x sigma_data^2/(sigma^2 + sigma_data^2)."""
    tiny = TINIES["conditional"]
    x, sigma, labels = asked(tiny)
    found = filled(tiny, random_arrays(tiny) | {"unet.out_gain": np.array(0.0)})(
        x.float(), sigma.float(), None if labels is None else labels.float()
    )
    torch.testing.assert_close(found, (x * (0.25 / (sigma**2 + 0.25))[:, None, None, None]).float())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("latent", [True, False])
def test_sizes_have_the_papers_numbers_of_parameters(size: str, latent: bool) -> None:
    with torch.device("meta"):
        built = Edm2(preset(size, latent=latent))
    assert round(sum(value.numel() for value in built.parameters()) / 1e6) == MILLIONS[size]


def test_blocks_stand_in_the_published_order() -> None:
    blocks = ["block0", "block1", "block2"]
    first = ["64x64_conv", *(f"64x64_{name}" for name in blocks)]
    down = [f"{side}x{side}_{name}" for side in (32, 16, 8) for name in ("down", *blocks)]
    assert [place.name for place in encoder(preset("xs"))] == first + down
    up = [f"{side}x{side}_{name}" for side in (8, 16, 32, 64) for name in (*(["in0", "in1"] if side == 8 else ["up"]), *blocks, "block3")]
    assert [place.name for place in decoder(preset("xs"))] == up
    attending = {place.name for place in (*encoder(preset("xs")), *decoder(preset("xs"))) if place.attends}
    assert attending == {f"{side}x{side}_{name}" for side in (16, 8) for name in (*blocks, "block3")} | {"8x8_in0"}
    into = {place.name: place.inside for place in decoder(preset("xs"))}
    assert [into[f"8x8_block{i}"] for i in range(4)] == [1024, 1024, 1024, 512 + 384]
    assert [into[f"16x16_block{i}"] for i in range(4)] == [512 + 384, 768, 768, 384 + 256]
    assert [into[f"64x64_block{i}"] for i in range(4)] == [256 + 128, 256, 256, 256]


@pytest.mark.parametrize("name", TINIES)
def test_keys_and_shapes_are_those_of_published_files(name: str) -> None:
    with torch.device("meta"):
        built = Edm2(config(TINIES[name]))
    assert {key: tuple(value.shape) for key, value in built.state_dict().items()} == layout(TINIES[name])


def test_operations_keep_magnitudes() -> None:
    """Their closed forms: a normal's silu by quadrature, sums and joins of independent parts, weights of unit norm, Fourier features."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / (2 * np.pi) ** 0.5
    assert torch.trapezoid(silu(z).square() * density, z) == pytest.approx(1, abs=2e-3)
    a, b = torch.eye(2, dtype=torch.float64)[:, :, None, None]  # orthogonal, so that squares add
    assert blend(a, b, 0.3).square().sum() == pytest.approx(1)
    assert blend(a, b, 0.3).flatten().tolist() == pytest.approx([0.7 / 0.58**0.5, 0.3 / 0.58**0.5])
    both = join(torch.ones(1, 6, 1, 1), -torch.ones(1, 2, 1, 1), 0.5).flatten()
    assert both.square().mean() == pytest.approx(1)
    assert both[:6].square().sum() == pytest.approx(float(both[6:].square().sum())), "each part weighs half, whatever its width"
    assert join(torch.ones(1, 6, 1, 1), torch.ones(1, 2, 1, 1), 0.0).flatten()[6:].abs().max() == 0
    assert normalise(torch.full((1, 4, 2), 3.0), (1,)).flatten().tolist() == pytest.approx([3 / 3.0001] * 8)
    layer = Weighted(5, 3, 3)
    nn.init.normal_(layer.weight, std=4, generator=torch.Generator().manual_seed(0))
    assert layer.effective().flatten(1).norm(dim=1).tolist() == pytest.approx([1] * 3, rel=1e-4)
    features = Fourier(4)
    features.freqs, features.phases = torch.tensor([0.0, 0.0, 1.0, 2.0]), torch.tensor([0.0, np.pi / 2, 0.0, 0.0])
    assert features(torch.tensor([np.pi])).flatten().tolist() == pytest.approx([2**0.5, 0, -(2**0.5), 2**0.5], abs=1e-6)


def test_activations_keep_their_magnitude_through_the_network() -> None:
    """Unit variance in, about unit variance out of every block of an untrained network (section 2.2), whatever the weights' own size.

    Attention falls short of it on noise, where it averages what is unrelated; borders do a little, since they are padded with zeros.
    """
    small = Edm2Config(32, 4, 10, 64, (1, 2), num_blocks=3, attn_resolutions=(16,), channels_per_head=32)
    state = untrained(small, seed=1, gain=0.0)
    seen: dict[str, float] = {}

    def watch(built: Edm2) -> None:
        for name, layer in built.unet.named_modules():
            if isinstance(layer, Block) or name in {"emb_noise", "emb_label", "out_conv"} or name.endswith("_conv"):
                layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: float(out.square().mean().sqrt())}))

    for scale in (1.0, 30.0):
        built = Edm2(small)
        built.load_state_dict({name: value * (scale if value.ndim > 1 else 1) for name, value in state.items()})
        watch(built.requires_grad_(False))
        draws = torch.Generator().manual_seed(2)
        classes = nn.functional.one_hot(torch.arange(4), 10).float()
        built.unet(torch.randn(4, 4, 32, 32, generator=draws), torch.randn(4, generator=draws), classes)
        assert len(seen) == 4 + len(encoder(small)) - 1 + len(decoder(small))
        assert all(0.75 < value < 1.1 for value in seen.values()), seen


def test_an_unknown_size_is_told() -> None:
    with pytest.raises(UserError, match="did you mean 'xxl'"):
        preset("xxxl")


def test_without_noise_there_is_nothing_to_take_away() -> None:
    """D(x; 0) = x, alone and in a batch with other levels, whose rows stay what they are; gradients pass as through x."""
    tiny = TINIES["conditional"]
    ours = filled(tiny, random_arrays(tiny))
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.eye(5)[:3]
    sigma = torch.tensor([0.0, 0.5, 0.0])
    mixed = ours(x, sigma, labels)
    assert torch.equal(mixed[::2], x[::2])
    assert (mixed[1:2] - ours(x[1:2], sigma[1:2], labels[1:2])).abs().max() < 1e-5
    mixed.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[::2], torch.ones(2, 4, 8, 8))
    assert torch.isfinite(x.grad).all()


STRANGE: dict[str, list[Any]] = {
    "img_resolution": [8.0, 0, 10**12, True, "8"],
    "img_channels": [0, 10**9, None],
    "label_dim": [True, -1, 2.5, 10**12],
    "model_channels": ["many", 0, 10**10, 16.0],
    "channel_mult": [(1, 2.0), (1, "2"), (), (1,) * 9, (0, 1), (1, 10**9), 2, (True, 2), [1, 2]],
    "channel_mult_noise": [0, 1.0, 10**9],
    "channel_mult_emb": ["4", 10**9],
    "num_blocks": [3_000_000, 10**10, 65, 0, 1.5],
    "attn_resolutions": [4, (4.0,), "4", (0,), None],
    "label_balance": ["x", None, float("nan"), -0.1, 1.1, True],
    "concat_balance": [float("inf"), "x"],
    "channels_per_head": [0, 8.0, 10**9],
    "res_balance": [float("nan"), 2],
    "attn_balance": [float("-inf"), (0.3,)],
    "clip_act": ["x", 0, float("nan"), float("inf")],
    "sigma_data": [float("nan"), 0, -0.5, float("inf"), "x"],
    "logvar_channels": [0, 6.0, 10**9],
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_makes_no_network_is_told_before_it_is_built(name: str) -> None:
    for value in STRANGE[name]:
        with pytest.raises(ValueError, match=f"{name} is no"):
            replace(config(Tiny()), **{name: value})


def test_what_is_optional_and_whole_numbers_for_shares_are_taken() -> None:
    given = replace(config(Tiny()), clip_act=None, channel_mult_noise=2, channel_mult_emb=None, label_balance=0, res_balance=1)
    assert (given.noise_width, given.condition_width) == (32, 32)
