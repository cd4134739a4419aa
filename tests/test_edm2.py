"""Published files of EDM2 as models: what they compute, their conditions, companions and codecs, and what is refused."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffprobe.adapters.codecs import PixelCodec
from diffprobe.adapters.edm2 import read_published
from diffprobe.adapters.edm2_codec import LatentCodec, LatentScale
from diffprobe.adapters.edm2_denoiser import Edm2Denoiser
from diffprobe.adapters.load import load
from diffprobe.errors import UserError
from diffprobe.model import Model
from diffprobe.paths import VarianceExploding
from diffprobe.sampling import Sampler, final, start, trajectory
from tests.edm2_files import Tiny, asked, config, expected, halved, network, random_arrays, save, save_published


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
    """(mean - raw mean)/raw std/2 for each channel, of images from 0 to 1; decoding undoes it."""
    folder = pipelines("sd") / "vae"
    model = load(f"edm2:{files['cond']},uncond={files['uncond']},vae={folder}", device="cpu")
    assert isinstance(model.codec, LatentCodec)
    assert model.identity["vae_source"] == str(folder)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = model.codec.vae.encode(images).latent_dist.mean
        plain = model.codec.vae.decode(raw).sample
        latents = model.codec.encode(images)
        decoded = model.codec.decode(latents)
    for channel, (mean, std) in enumerate(zip((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), strict=True)):
        torch.testing.assert_close(latents[:, channel], (raw[:, channel] - mean) / std / 2)
    torch.testing.assert_close(decoded, plain, atol=1e-5, rtol=1e-5)


class Identity:
    """An autoencoder of four channels that changes nothing."""

    def encode(self, images: Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=images))

    def decode(self, latents: Tensor) -> Any:
        return SimpleNamespace(sample=latents)


def test_the_autoencoder_is_shown_pixels_from_0_to_1() -> None:
    """By an identity in its place: latents are pixels on the scale of the moments, and pictures beyond 0 and 1 are not cut off."""
    codec = LatentCodec(Identity(), torch.device("cpu"))
    images = torch.tensor([0.25, 0.0, 1.0, -0.5]).reshape(1, 4, 1, 1)
    raw = [
        (value - mean) / std / 2
        for value, mean, std in zip((0.25, 0, 1, -0.5), (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), strict=True)
    ]
    assert codec.encode(images).flatten().tolist() == pytest.approx(raw)
    torch.testing.assert_close(codec.decode(codec.encode(images)), images, atol=1e-6, rtol=0)
    assert codec.encode(torch.full((1, 4, 1, 1), 0.5)).dtype == torch.float32


def test_a_files_own_scale_goes_before_the_published_one(tmp_path: Path) -> None:
    arrays = random_arrays(Tiny())
    told = save_published(tmp_path / "a.pkl", Tiny(), arrays, raw_mean=[1.0, 2.0, 3.0, 4.0], batch_size=8)
    scale = read_published(told)[2]
    assert (scale.raw_mean, scale.raw_std) == ((1.0, 2.0, 3.0, 4.0), (4.17, 4.62, 3.71, 3.28))
    wrong: dict[str, list[Any]] = {
        "raw_std": ["wide", [1.0, 2.0, 0.0, 1.0], [1.0], float("nan")],
        "raw_mean": [[float("nan")] * 4, [1.0, "a", 1.0, 1.0]],
        "final_std": [0, True],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(UserError, match="scales its latents by moments that are no"):
                read_published(save_published(tmp_path / "b.pkl", Tiny(), arrays, **{name: value}))
    assert LatentScale(final_mean=0).final_mean == 0


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
        (network(tiny.arguments | {"num_blocks": 3_000_000}, arrays), "num_blocks is no whole number from 1 to 64"),
        (network(tiny.arguments | {"label_balance": "x"}, arrays), "label_balance is no number"),
        (network(tiny.arguments | {"clip_act": "x"}, arrays), "clip_act is no number"),
        (network(tiny.arguments | {"sigma_data": float("nan")}, arrays), "sigma_data is no number"),
        (network(tiny.arguments | {"channel_mult": [1, 2.0]}, arrays), "channel_mult is no row"),
        (network(tiny.arguments | {"channel_mult": 2}, arrays), "channel_mult is no row"),
        (
            network(tiny.arguments, arrays | {"unet.out_conv.weight": np.full((4, 16, 3, 3), np.nan)}),
            "'unet.out_conv.weight' .* not finite",
        ),
        (network(tiny.arguments, arrays | {"unet.out_gain": np.array(np.inf)}), "'unet.out_gain' .* not finite"),
        (network(tiny.arguments, short), "lacks 'unet.out_gain'"),
        (network(tiny.arguments, arrays | {"unet.extra": np.ones(2)}), "has 'unet.extra'"),
        (network(tiny.arguments, random_arrays(replace(tiny, classes=4))), r"is \[32, 4\], not \[32, 5\]"),
    ]
    for content, told in other:
        with pytest.raises(UserError, match=told) as error:
            load(f"edm2:{save(path, content)}", device="cpu")
        assert "\n" not in str(error.value)


def test_gains_are_rounded_as_the_published_network_rounds_them(tmp_path: Path) -> None:
    """It divides a gain by sqrt(fan-in) in float16, and then multiplies float32 weights by it. Here gains are where that shows most."""
    arrays = random_arrays(Tiny(), 3) | {"unet.out_gain": np.array(1.7)}
    model = load(f"edm2:{save_published(tmp_path / 'a.pkl', Tiny(), arrays)}", device="cpu")
    x, sigma, _ = asked(Tiny())
    sigma = torch.full_like(sigma, 20.0)
    found = given(model, (x * 20).float(), sigma)
    unrounded = expected(Tiny(), halved(arrays, gains=False), x * 20, sigma, None)
    assert (found - expected(Tiny(), halved(arrays), x * 20, sigma, None)).abs().max() < 1e-4
    assert (found - unrounded).abs().max() > 4e-4
    assert isinstance(model.denoiser, Edm2Denoiser)
    ours = float(model.denoiser.network.unet.out_gain)
    assert ours == pytest.approx(float(torch.tensor(1.7, dtype=torch.float16) / 12) * 12, rel=1e-6)


def test_a_file_whose_name_looks_like_options_is_a_file(tmp_path: Path, files: dict[str, Path]) -> None:
    odd = tmp_path / "net,snap=3,vae=none.pkl"
    odd.write_bytes(files["cond"].read_bytes())
    assert load(f"edm2:{odd}", device="cpu").identity["source"] == str(odd)
