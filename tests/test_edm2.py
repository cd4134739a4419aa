"""EDM2's network against the paper's formulas in numpy, its published layout and sizes, and published files as models."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffprobe.adapters.edm2 import read_published
from diffprobe.adapters.edm2_codec import LatentCodec, PixelCodec
from diffprobe.adapters.edm2_denoiser import Edm2Denoiser
from diffprobe.adapters.edm2_layers import Block, Fourier, Weighted, blend, join, normalise, silu
from diffprobe.adapters.edm2_network import SIZES, Edm2, Edm2Config, decoder, encoder, preset, untrained
from diffprobe.adapters.load import load
from diffprobe.errors import UserError
from diffprobe.model import Model
from diffprobe.paths import VarianceExploding
from diffprobe.sampling import Sampler, final, start, trajectory
from tests.edm2_files import Arrays, Tiny, halved, layout, network, random_arrays, reference, save, save_published

TINIES = {
    "conditional": Tiny(),
    "unconditional": Tiny(classes=0, channels=3, blocks=2),
    "unbalanced": Tiny(
        width=32, head=16, label_balance=0.2, concat_balance=0.7, res_balance=0.4, attn_balance=0.6, sigma_data=0.8, bound=1.1
    ),
}
#: Millions of parameters, as the paper has them.
MILLIONS = {"xs": 125, "s": 280, "m": 498, "l": 777, "xl": 1119, "xxl": 1523}


def config(tiny: Tiny) -> Edm2Config:
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in tiny.arguments.items()}
    return Edm2Config(**{key: value for key, value in given.items() if key not in {"use_fp16", "dropout"}})


def filled(tiny: Tiny, arrays: Arrays) -> Edm2:
    built = Edm2(config(tiny))
    built.load_state_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in arrays.items()})
    return built.requires_grad_(False)


def asked(tiny: Tiny, count: int = 3, seed: int = 5) -> tuple[Tensor, Tensor, Tensor | None]:
    """x at levels from low to high, and labels one-hot but for the last, which are zeros."""
    draws = np.random.default_rng(seed)
    sigma = np.geomspace(0.01, 30, count)
    x = draws.standard_normal((count, tiny.channels, tiny.side, tiny.side)) * np.sqrt(sigma**2 + 0.25)[:, None, None, None]
    labels = np.eye(max(tiny.classes, 1))[np.arange(count) % max(tiny.classes, 1)] * (np.arange(count) < count - 1)[:, None]
    return torch.tensor(x), torch.tensor(sigma), torch.tensor(labels) if tiny.classes else None


def expected(tiny: Tiny, arrays: Arrays, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    return torch.tensor(reference(tiny, arrays, x.double().numpy(), sigma.double().numpy(), None if labels is None else labels.numpy()))


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


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A conditional network of latents, an unconditional one beside it, and one of pixels."""
    folder = tmp_path_factory.mktemp("edm2")
    kinds = {"cond": Tiny(), "uncond": Tiny(classes=0), "pixels": Tiny(channels=3)}
    return {
        name: save_published(folder / f"{name}.pkl", tiny, random_arrays(tiny, seed)) for seed, (name, tiny) in enumerate(kinds.items())
    }


@pytest.fixture(scope="module")
def pair(files: dict[str, Path]) -> Model:
    return load(f"edm2:{files['cond']},uncond={files['uncond']}", device="cpu")


def given(model: Model, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
    assert model.denoiser is not None
    return model.denoiser(x, t, cond)


def test_a_published_file_fills_the_network_with_its_own_tensors(files: dict[str, Path]) -> None:
    found, state, _ = read_published(files["cond"])
    arrays = random_arrays(Tiny(), 0)
    assert found == config(Tiny())
    assert state.keys() == arrays.keys()
    assert all(torch.equal(state[name], torch.tensor(value, dtype=torch.float16)) for name, value in arrays.items())


def test_a_network_alone_and_positional_arguments_are_read_too(tmp_path: Path) -> None:
    tiny = Tiny()
    arrays = random_arrays(tiny)
    alone = network(tiny.arguments, arrays)
    named = {key: value for key, value in tiny.arguments.items() if key not in {"img_resolution", "img_channels", "label_dim"}}
    alone.__dict__.update(_init_args=(tiny.side, tiny.channels, tiny.classes), _init_kwargs=named)
    found, state, _ = read_published(save(tmp_path / "alone.pkl", alone))
    assert found == config(tiny)
    assert state.keys() == arrays.keys()


def test_a_model_is_what_the_file_computes(files: dict[str, Path]) -> None:
    model = load(f"edm2:{files['cond']}", device="cpu")
    assert (model.name, model.path, model.codec) == ("cond", VarianceExploding(0.002, 80.0, 7.0), None)
    assert model.capabilities == {"path", "denoiser", "condition"}
    assert model.shape == (4, 8, 8)
    assert model.condition is not None
    classes = model.condition(["class 3", "", " class 0 "])
    assert classes.tolist() == [3, -1, 0]
    assert classes.dtype == torch.int64
    x, sigma, _ = asked(Tiny())
    labels = torch.eye(6, dtype=torch.float64)[classes + 1][:, 1:]
    truth = expected(Tiny(), halved(random_arrays(Tiny(), 0)), x, sigma, labels)
    assert (given(model, x.float(), sigma, classes) - truth).abs().max() < 1e-4
    one = given(model, x.float(), 0.7, 2)
    assert (one - given(model, x, torch.full((3,), 0.7), torch.tensor([2]))).abs().max() < 1e-6
    assert one.dtype == torch.float32


def test_identity_names_every_file_and_what_stands_for_no_class(files: dict[str, Path], pair: Model) -> None:
    alone, bare = (load(f"edm2:{files[name]}", device="cpu").identity for name in ("cond", "uncond"))
    assert alone["unconditional"] == "zeros in place of a class"
    assert bare["unconditional"] == "the network itself"
    assert pair.identity == {**alone, "unconditional": str(files["uncond"]), "unconditional_weights": bare["weights"]}
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", alone["weights"])
    assert alone["source"] == str(files["cond"])
    assert alone["dtype"] == "float32"


def test_conditions_of_several_classes_stack(pair: Model) -> None:
    """x [K B], cond [K B] at levels of their own: each row is what it is alone, in any order; no class is the companion's."""
    x, _, _ = asked(Tiny(), 6)
    sigma, classes = torch.tensor([0.1, 0.5, 2.0, 9.0, 0.1, 0.5]), torch.tensor([3, -1, 0, 4, -1, 3])
    x = x.float()
    stacked = given(pair, x, sigma, classes)
    alone = torch.cat([given(pair, x[i : i + 1], sigma[i], classes[i : i + 1]) for i in range(6)])
    assert (stacked - alone).abs().max() < 1e-5
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    assert (given(pair, x[order], sigma[order], classes[order]) - stacked[order]).abs().max() < 1e-5
    assert (given(pair, x, sigma) - given(pair, x, sigma, classes))[classes == -1].abs().max() < 1e-5
    assert (given(pair, x, sigma) - given(pair, x, sigma, classes))[classes >= 0].abs().max() > 1e-3


def test_no_class_is_the_companion_or_zeros(files: dict[str, Path], pair: Model) -> None:
    alone, bare = (load(f"edm2:{files[name]}", device="cpu") for name in ("cond", "uncond"))
    x, sigma, _ = asked(Tiny())
    assert torch.equal(given(pair, x, sigma), given(bare, x, sigma))
    assert torch.equal(given(pair, x, sigma, torch.tensor([1, 2, 3])), given(alone, x, sigma, torch.tensor([1, 2, 3])))
    zeros = expected(Tiny(), halved(random_arrays(Tiny(), 0)), x, sigma, None)
    assert (given(alone, x, sigma) - zeros).abs().max() < 1e-4
    assert (given(alone, x, sigma) - given(bare, x, sigma)).abs().max() > 1e-3


def test_all_conditions_of_a_step_are_one_evaluation(pair: Model) -> None:
    denoiser = pair.denoiser
    assert isinstance(denoiser, Edm2Denoiser)
    assert denoiser.companion is not None
    calls: list[tuple[str, int]] = []
    hooks = [
        part.register_forward_hook(lambda _, inputs, __, name=name: calls.append((name, len(inputs[0]))))
        for name, part in (("network", denoiser.network), ("companion", denoiser.companion))
    ]
    x = torch.zeros(6, 4, 8, 8)
    for classes in ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, -1, -1], [-1] * 6):
        denoiser(x, 1.0, torch.tensor(classes))
    for hook in hooks:
        hook.remove()
    assert calls == [("network", 6), ("companion", 2), ("network", 4), ("companion", 6)]


def test_gradients_pass_through_a_mixed_batch(pair: Model) -> None:
    x = torch.ones(2, 4, 8, 8, requires_grad=True)
    given(pair, x, 1.0, torch.tensor([1, -1])).sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()


def test_sampling_runs_on_its_path(pair: Model) -> None:
    assert pair.path is not None
    assert pair.denoiser is not None
    assert pair.condition is not None
    times = pair.path.levels(4)
    assert [times[0], times[-1]] == pytest.approx([80, 0.002])
    x = start(pair.path, times[0], (4, 8, 8), [1, 2])
    states = trajectory(pair.denoiser, pair.path, x, times, cond=pair.condition(["class 1", ""]), sampler=Sampler(1.0, (1, 2)))
    assert torch.isfinite(final(states)).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_format_asked_for_is_the_networks(files: dict[str, Path], dtype: Any) -> None:
    model = load(f"edm2:{files['cond']}", device="cpu", torch_dtype=dtype)
    assert isinstance(model.denoiser, Edm2Denoiser)
    kept = {(value.ndim == 4, str(value.dtype)) for value in model.denoiser.network.parameters()}
    assert kept == {(True, f"torch.{dtype}"), (False, "torch.float32")}, "what carries the condition and the gains stays as it is"
    assert given(model, torch.zeros(1, 4, 8, 8), 1.0).dtype == torch.float32
    assert model.identity["dtype"] == dtype


def test_pixels_are_their_own_codec(files: dict[str, Path]) -> None:
    codec = load(f"edm2:{files['pixels']}", device="cpu").codec
    assert isinstance(codec, PixelCodec)
    images = torch.tensor([0.0, 0.25, 1.0]).reshape(1, 3, 1, 1)
    assert codec.encode(images).flatten().tolist() == [-1, -0.5, 1]
    assert torch.equal(codec.decode(codec.encode(images)), images)


def test_latents_have_the_scale_of_training(files: dict[str, Path], pipelines: Callable[[str], Path]) -> None:
    """(mean - raw mean)/raw std/2 for each channel; decoding undoes it."""
    folder = pipelines("sd") / "vae"
    model = load(f"edm2:{files['cond']},uncond={files['uncond']},vae={folder}", device="cpu")
    assert isinstance(model.codec, LatentCodec)
    assert model.identity["vae_source"] == str(folder)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = model.codec.vae.encode(images * 2 - 1).latent_dist.mean
        plain = model.codec.vae.decode(raw).sample / 2 + 0.5
        latents = model.codec.encode(images)
        decoded = model.codec.decode(latents)
    for channel, (mean, std) in enumerate(zip((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), strict=True)):
        torch.testing.assert_close(latents[:, channel], (raw[:, channel] - mean) / std / 2)
    torch.testing.assert_close(decoded, plain, atol=1e-5, rtol=1e-5)


def test_a_files_own_scale_goes_before_the_published_one(tmp_path: Path) -> None:
    arrays = random_arrays(Tiny())
    told = save_published(tmp_path / "a.pkl", Tiny(), arrays, raw_mean=[1.0, 2.0, 3.0, 4.0], batch_size=8)
    scale = read_published(told)[2]
    assert (scale.raw_mean, scale.raw_std) == ((1.0, 2.0, 3.0, 4.0), (4.17, 4.62, 3.71, 3.28))
    with pytest.raises(UserError, match="are no numbers"):
        read_published(save_published(tmp_path / "b.pkl", Tiny(), arrays, raw_std="wide"))


@pytest.mark.parametrize("prompt", ["tiger shark", "class", "class -1", "class 5", "class 3.5", "3", "class 99999999999999999999"])
def test_unknown_classes_are_one_line(pair: Model, prompt: str) -> None:
    assert pair.condition is not None
    with pytest.raises(UserError, match="ask for 'class") as told:
        pair.condition(["class 1", prompt])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("cond", [torch.tensor([5, 0]), torch.tensor([-2, 0]), torch.tensor([0.5, 1.0]), 7, torch.tensor([True, False])])
def test_conditions_that_are_no_classes_are_refused(pair: Model, cond: Any) -> None:
    with pytest.raises(UserError, match=r"none of this network's 5|class indices, int64"):
        given(pair, torch.zeros(2, 4, 8, 8), 1.0, cond)


def test_an_unconditional_network_knows_no_class(files: dict[str, Path]) -> None:
    model = load(f"edm2:{files['uncond']}", device="cpu")
    assert model.condition is not None
    assert model.condition([""]).tolist() == [-1]
    with pytest.raises(UserError, match="this network is unconditional"):
        model.condition(["class 0"])


def test_specs_that_cannot_be_read_are_one_line_each(files: dict[str, Path], pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    cond, uncond, pixels, sd = files["cond"], files["uncond"], files["pixels"], pipelines("sd")
    (tmp_path / "text.pkl").write_text("weights")
    (tmp_path / "other").mkdir()
    wrong = {
        "": "lacks its file",
        f"{tmp_path}/none.pkl": "no file '.*none.pkl'",
        f"{cond},uncond={tmp_path}/none.pkl": "no file '.*none.pkl'",
        f"{cond},uncnd={uncond}": "did you mean 'uncond'",
        f"{cond},uncond=": "give each of uncond, vae once",
        f"{cond},vae={sd}/vae,vae={sd}/vae": "give each of uncond, vae once",
        f"{cond},uncond={cond}": "network of 5 classes: give an unconditional one",
        f"{uncond},uncond={cond}": "unconditional itself",
        f"{pixels},uncond={uncond}": r"draws \[4, 8, 8\] and the conditional network \[3, 8, 8\]",
        f"{cond},vae={tmp_path}/other": "no config.json",
        f"{cond},vae={sd}/unet": "cannot load the autoencoder|has .* channels",
        f"{pixels},vae={sd}/vae": "needs no autoencoder",
        f"{cond},vae={pipelines('sd3')}/vae": "has 16 channels, the network 4|channels",
        f"{tmp_path}/text.pkl": "damaged or no pickle",
    }
    for spec, told in wrong.items():
        with pytest.raises(UserError, match=told) as error:
            load(f"edm2:{spec}", device="cpu")
        assert "\n" not in str(error.value)


def test_files_of_other_networks_are_told_apart(tmp_path: Path) -> None:
    tiny, path = Tiny(), tmp_path / "a.pkl"
    arrays = random_arrays(tiny)
    short = {name: value for name, value in arrays.items() if name != "unet.out_gain"}
    other: list[tuple[object, str]] = [
        ({"net": 1}, "no network under 'ema' \\(net\\)"),
        ([1], "no network under 'ema' \\(list\\)"),
        ({"ema": {"weight": 1}}, "in place of a network that NVIDIA saved"),
        (network(tiny.arguments, arrays, kind="EDMPrecond"), "holds 'EDMPrecond', not EDM2's"),
        (network(tiny.arguments | {"wide": 2}, arrays), "made with 'wide'"),
        (network(tiny.arguments | {"resample_filter": [1, 3, 3, 1]}, arrays), "another filter"),
        (network(tiny.arguments | {"img_resolution": 9}, arrays), "cannot be halved"),
        (network(tiny.arguments | {"channels_per_head": 7}, arrays), "no whole number of heads"),
        (network(tiny.arguments | {"model_channels": "many"}, arrays), "makes no network"),
        (network(tiny.arguments, short), "lacks 'unet.out_gain'"),
        (network(tiny.arguments, arrays | {"unet.extra": np.ones(2)}), "has 'unet.extra'"),
        (network(tiny.arguments, random_arrays(replace(tiny, classes=4))), r"is \[32, 4\], not \[32, 5\]"),
    ]
    for content, told in other:
        with pytest.raises(UserError, match=told):
            load(f"edm2:{save(path, content)}", device="cpu")


def test_an_unknown_size_is_told() -> None:
    with pytest.raises(UserError, match="did you mean 'xxl'"):
        preset("xxxl")
