"""Networks, editors and generators of users' own: against exact worlds and deployed networks, through every probe, and what is refused."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor, nn

from diffprobe import rng
from diffprobe.adapters import wrapping
from diffprobe.adapters.callables import pictures
from diffprobe.adapters.codecs import PixelCodec
from diffprobe.adapters.exact import exact_model, exact_world
from diffprobe.adapters.load import load
from diffprobe.errors import UserError
from diffprobe.model import GenerateSettings, Model
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving
from diffprobe.probes.base import Probe
from diffprobe.probes.consistency import Consistency
from diffprobe.probes.drift import Drift
from diffprobe.probes.geometry import Field, Geometry
from diffprobe.probes.interpolation import Interpolation
from diffprobe.probes.speciation import Speciation
from diffprobe.runs.asked import asked
from diffprobe.runs.execute import execute, plan
from diffprobe.runs.result import check, start, suited
from diffprobe.runs.store import Store
from diffprobe.sampling import Guidance, guided
from tests.pipelines import BETAS
from tests.test_conformance import close, depth, rig, run
from tests.test_drift_untold import noisy, shifted

wrap = partial(wrapping.wrap, device="cpu")  # the exact worlds are there
PATHS: dict[str, NoisePath] = {"vp": VariancePreserving.scaled_linear(), "ve": VarianceExploding(), "flow": RectifiedFlow(shift=3.0)}
TIMES = {"vp": (1.0, 400.0, 900.0), "ve": (0.05, 1.0, 20.0), "flow": (0.02, 0.5, 0.95)}
MIXTURE, SHAPE = exact_world("gmm").mixture, exact_world("gmm").codec.latent


def says(word: str, path: NoisePath, counted: Callable[[Tensor], Tensor] = lambda t: t) -> Callable[..., Tensor]:
    """A network that predicts, from the exact score, what the word means, in float32; `counted` undoes its clock."""

    def network(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        assert (t.shape, t.dtype, x.dtype) == ((len(x),), torch.float32, torch.float32)
        t = counted(t.double())
        a, s = (of_path(t).reshape(-1, 1, 1, 1) for of_path in (path.alpha, path.sigma))
        eps = -s * MIXTURE.score(x, t, path, cond)
        x0 = (x.double() - s * eps) / a
        return {"eps": eps, "v": a * eps - s * x0, "velocity": eps - x0, "x0": x0}[word].float()

    return network


@pytest.mark.parametrize("kind", sorted(PATHS))
@pytest.mark.parametrize(("word", "theirs"), [("eps", "epsilon"), ("v", "v_prediction"), ("velocity", "flow_prediction"), ("x0", "sample")])
def test_the_exact_score_in_any_words_is_the_exact_denoiser(kind: str, word: str, theirs: str) -> None:
    path = PATHS[kind]
    short, long = (wrap(says(word, path), predicts=name, path=path, shape=SHAPE) for name in (word, theirs))
    assert short.denoiser is not None
    assert long.denoiser is not None
    assert short.identity["predicts"] == long.identity["predicts"] == theirs
    exact = MIXTURE.denoiser(path)
    for t in torch.tensor(TIMES[kind]).tolist():  # what float32 makes of them, since the network is shown that
        x = path.alpha(t) * rng.normal(SHAPE, "test.wrap", range(4)) + path.sigma(t) * rng.normal(SHAPE, "test.wrap.noise", range(4))
        assert torch.allclose(short.denoiser(x, t), exact(x, t), atol=1e-5)
        assert torch.equal(short.denoiser(x, t), long.denoiser(x, t))
    several = torch.tensor(TIMES[kind])
    assert torch.allclose(short.denoiser(x[:3], several), exact(x[:3], several), atol=1e-5)


def test_clocks_of_networks_that_count_time_otherwise() -> None:
    flow, ve = RectifiedFlow(), VarianceExploding()
    x = rng.normal(SHAPE, "test.wrap", range(4))
    thousand = wrap(says("velocity", flow, lambda t: t / 1000), predicts="velocity", path=flow, shape=SHAPE, clock=lambda t: 1000 * t)
    logarithm = wrap(says("x0", ve, lambda t: (4 * t).exp()), predicts="x0", path=ve, shape=SHAPE, clock=lambda sigma: sigma.log() / 4)
    for model, path, t in ((thousand, flow, 0.25), (logarithm, ve, 2.0)):
        assert model.denoiser is not None
        assert torch.allclose(model.denoiser(x, t), MIXTURE.denoiser(path)(x, t), atol=1e-5)


def classes(prompts: Sequence[str]) -> Tensor:
    """Which classes each prompt allows, bool [B, 4]."""
    named = [re.search(r"\d", prompt) for prompt in prompts]
    return torch.stack([torch.ones(4, dtype=torch.bool) if one is None else torch.arange(4) == int(one[0]) for one in named])


def test_conditions_reach_the_network_and_none_is_the_empty_prompt() -> None:
    path = PATHS["vp"]
    model = wrap(says("eps", path), predicts="eps", path=path, shape=SHAPE, condition=classes)
    assert model.denoiser is not None
    x, exact = rng.normal(SHAPE, "test.wrap", range(4)), MIXTURE.denoiser(path)
    one = classes(["class 1"])
    assert torch.allclose(model.denoiser(x, 400.0, one), exact(x, 400.0, 1), atol=1e-5)
    assert torch.allclose(model.denoiser(x, 400.0, classes(["0", "1", "2", ""])), exact(x, 400.0, torch.tensor([0, 1, 2, -1])), atol=1e-5)
    assert torch.allclose(model.denoiser(x, 400.0), exact(x, 400.0), atol=1e-5)
    pushed = guided(model.denoiser, path, Guidance(3.0))(x, 400.0, one)
    assert torch.allclose(pushed, exact(x, 400.0) + 3 * (exact(x, 400.0, 1) - exact(x, 400.0)), atol=1e-4)


class Answer(NamedTuple):
    sample: Tensor


@pytest.mark.parametrize("kind", ["tensor", "tuple", "sample", "variances", "object"])
def test_answers_of_every_kind(kind: str) -> None:
    class Output:
        def __init__(self, sample: Tensor) -> None:
            self.sample = sample

    def network(x: Tensor, t: Tensor) -> Any:
        found = x / 2
        twice = torch.cat([found, x * torch.nan], 1)
        return {"tensor": found, "tuple": (found, None), "sample": Answer(found), "variances": twice, "object": Output(found)}[kind]

    model = wrap(network, predicts="sample", path=VarianceExploding(), shape=(3, 8, 8))
    assert model.denoiser is not None
    assert torch.equal(model.denoiser(torch.ones(2, 3, 8, 8), 1.0), torch.full((2, 3, 8, 8), 0.5))


class Scaled(nn.Module):
    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight, self.drop = nn.Parameter(torch.tensor(weight)), nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.float32
        answer: Tensor = self.drop(x * self.weight)
        return answer


def test_a_module_is_set_to_evaluate_asked_in_its_own_format_and_known_by_its_weights() -> None:
    made = partial(wrap, predicts="x0", path=VarianceExploding(), shape=(3, 8, 8))
    for dtype in (torch.float32, torch.bfloat16):
        model = made(Scaled().to(dtype))
        assert model.denoiser is not None
        found = model.denoiser(torch.ones(2, 3, 8, 8), 1.0)
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.full_like(found, 0.5))
        assert model.identity["dtype"] == str(dtype).removeprefix("torch.")
    one, same, other = (made(Scaled(weight)).identity for weight in (0.5, 0.5, 0.25))
    assert one == same
    assert {name for name in one if one[name] != other[name]} == {"network", "weights"}
    assert one["weights"].startswith("sha256:")
    assert "version" not in one
    assert made(Scaled(), codec=PixelCodec(0.0, 1.0)).identity["codec"] == "identity/0/1"
    assert made(Scaled(), path=VarianceExploding(sigma_max=10.0)).identity["path"] != one["path"]
    assert (made(Scaled()).name, made(Scaled(), name="mine").name) == ("Scaled", "mine")


def test_weights_that_a_function_or_an_object_holds_are_known_too() -> None:
    def around(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, t: net(2 * x, t) / 2

    class Holder:
        def __init__(self, net: nn.Module) -> None:
            self.net = net

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.as_tensor(self.net(x, t))

        def ask(self, x: Tensor, t: Tensor) -> Tensor:
            return self(x, t)

    made = partial(wrap, predicts="x0", path=VarianceExploding(), shape=(3, 8, 8))
    for hold in (around, Holder, lambda net: Holder(net).ask, lambda net: partial(around(net)), lambda net: net.forward):
        one, other = (made(hold(Scaled(weight).eval())).identity for weight in (0.5, 0.25))
        assert one["weights"] != other["weights"]
        assert "version" not in one
    unseen = made(lambda x, t: x).identity
    assert unseen["version"] == "unstated"
    assert unseen["network"].startswith("tests.test_wrapping:")
    assert made(lambda x, t: x, version="2").identity["version"] == "2"


class Slots:
    __slots__ = ("net",)

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.as_tensor(self.net(x, t))


class Items:
    def __init__(self, nets: Any) -> None:
        self.nets = nets

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.as_tensor(self.nets[0](x, t))


def first(net: Any, x: Tensor, t: Tensor) -> Tensor:
    return torch.as_tensor(net(x, t))


def last(x: Tensor, t: Tensor, *, net: Any = None) -> Tensor:
    return torch.as_tensor(net(x, t))


def decorated(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    @torch.no_grad()
    def ask(x: Tensor, t: Tensor) -> Tensor:
        return torch.as_tensor(net(x, t))

    return ask


def with_default(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def ask(x: Tensor, t: Tensor, own: nn.Module = net) -> Tensor:
        return torch.as_tensor(own(x, t))

    return ask


def with_keyword_default(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def ask(x: Tensor, t: Tensor, *, own: nn.Module = net) -> Tensor:
        return torch.as_tensor(own(x, t))

    return ask


def global_(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A function whose only mention of a global network is inside a comprehension."""
    names: dict[str, Any] = {"net": net, "torch": torch, "__name__": __name__}
    exec("def ask(x, t): return torch.cat([net(one[None], t) for one in x])", names)
    found: Callable[[Tensor, Tensor], Tensor] = names["ask"]
    return found


HOLDING: dict[str, Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
    "decorated": decorated,
    "argument of a partial": lambda net: partial(first, net),
    "keyword of a partial": lambda net: partial(last, net=net),
    "partial of a partial": lambda net: partial(partial(first, net)),
    "default": with_default,
    "keyword default": with_keyword_default,
    "dict": lambda net: Items({0: net}),
    "list": lambda net: Items([net]),
    "tuple": lambda net: Items((net,)),
    "slots": Slots,
    "global": global_,
}


@pytest.mark.parametrize("hold", sorted(HOLDING))
def test_weights_are_known_however_they_are_held(hold: str) -> None:
    made = partial(wrap, predicts="x0", path=VarianceExploding(), shape=(3, 8, 8))
    one, same, other = (made(HOLDING[hold](Scaled(weight).eval())).identity for weight in (0.5, 0.5, 0.25))
    assert one == same
    assert one["weights"] != other["weights"]
    assert "version" not in one


def test_a_name_without_a_value_yet_hides_no_weights() -> None:
    def edit(images: Tensor, *_: Any) -> Tensor:
        return torch.as_tensor(net(later(images)))

    net = nn.Conv2d(3, 3, 1)
    identity = wrap(editor=edit, size=8).identity
    later = torch.relu
    assert not identity["editor"].endswith("/none")
    assert "version" not in identity


def test_a_service_is_known_by_what_it_says() -> None:
    class Service:
        fingerprint = "service/7"

        def __call__(self, images: Tensor, *_: Any) -> Tensor:
            return images

    assert "version" not in wrap(editor=Service(), size=8).identity
    assert wrap(editor=Service(), size=8).identity["editor"] == "service/7"
    assert wrap(editor=shifted, size=8).identity["version"] == "unstated"
    assert wrap(editor=shifted, size=8, version="2024-06").identity["version"] == "2024-06"


@pytest.mark.parametrize("family", ["sd", "flow", "edm"])
def test_a_deployed_network_wrapped_on_its_scheduler_is_the_adapters(family: str, pipelines: Callable[[str], Path]) -> None:
    """With its scheduler, its clock and what it predicts; the same where the path is given in place of the scheduler."""
    model = load(str(pipelines(family)), device="cpu")
    assert model.denoiser is not None
    assert model.condition is not None
    assert model.shape is not None
    assert model.generator is not None
    pipe: Any = model.generator.pipe  # type: ignore[attr-defined]
    cond = model.condition(["a red star", "blue star"])
    states: Tensor = pipe.tokens(cond) if family == "edm" else cond

    def condition(prompts: Sequence[str]) -> Tensor:
        return states[[0] * len(prompts)]

    def network(x: Tensor, t: Tensor, cond: Tensor) -> Any:
        return pipe.unet(x, t, encoder_hidden_states=cond)

    mine = wrap(network, path=pipe.scheduler, shape=model.shape, condition=condition)
    assert mine.denoiser is not None
    x, t = rng.normal(model.shape, "test.wrap", range(2)), {"sd": 601.0, "flow": 0.7, "edm": 2.0}[family]
    with torch.no_grad():
        theirs = model.denoiser(x, t, cond)
        assert torch.allclose(mine.denoiser(x, t, states), theirs, atol=1e-5)
    if family == "flow":
        kind: dict[str, Any] = {"predicts": "velocity", "path": RectifiedFlow(), "clock": lambda t: 1000 * t}
        plain = wrap(network, **kind, shape=model.shape, condition=condition)
        assert plain.denoiser is not None
        with torch.no_grad():
            assert torch.allclose(plain.denoiser(x, t, states), theirs, atol=1e-5)


def test_what_a_preconditioned_network_predicts_changes_neither_its_input_nor_its_clock() -> None:
    """Of an EDM scheduler: D = c_skip x + c_out F(c_in x, log(sigma)/4), with the sign of c_out turned for v (Karras et al. 2022)."""
    scheduler, x, sigma = EDMEulerScheduler(), rng.normal((3, 8, 8), "test.wrap", range(2)), 2.0

    def network(x: Tensor, t: Tensor) -> Tensor:
        return x + t.reshape(-1, 1, 1, 1)

    own = scheduler.config.sigma_data
    total = (sigma**2 + own**2) ** 0.5
    for word, sign in (("eps", 1), ("v", -1)):
        model = wrap(network, path=scheduler, predicts=word, shape=(3, 8, 8))
        assert model.denoiser is not None
        said = x / total + np.log(sigma) / 4
        assert torch.allclose(model.denoiser(x, sigma), own**2 / total**2 * x + sign * sigma * own / total * said, atol=1e-5)
    for word in ("x0", "velocity"):
        with pytest.raises(UserError, match="EDMEulerScheduler preconditions its network, which predicts epsilon or v_prediction"):
            wrap(network, path=scheduler, predicts=word, shape=(3, 8, 8))


def test_an_unconditional_network_in_three_lines() -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    scheduler = DDPMScheduler()
    model = wrap(unet, path=scheduler, shape=(3, 16, 16))
    assert model.denoiser is not None
    assert isinstance(model.codec, PixelCodec)
    x = rng.normal((3, 16, 16), "test.wrap", [0])
    with torch.no_grad():
        eps = unet(x, torch.tensor([500])).sample
        clean = scheduler.step(eps, 500, x, generator=torch.Generator()).pred_original_sample
        found = model.denoiser(x, 500.0)
    assert torch.allclose(found.clamp(-1, 1), clean, atol=1e-4)  # that scheduler clips what it predicts
    assert model.capabilities == {"path", "denoiser", "codec"}
    fast = wrap(unet, path=LCMScheduler(), shape=(3, 16, 16))
    assert fast.identity["distilled"] == "LCMScheduler"


def test_images_are_what_a_network_of_pixels_sees() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for low, high in ((-1.0, 1.0), (0.0, 1.0), (-0.5, 2.0)):
        codec = PixelCodec(low, high)
        assert torch.allclose(codec.decode(codec.encode(images)), images, atol=1e-6)
        assert torch.equal(codec.encode(torch.tensor([0.0, 1.0])), torch.tensor([low, high]))
    latents = wrap(lambda x, t: x, predicts="x0", path=VarianceExploding(), shape=(4, 8, 8))
    assert latents.codec is None


# Editors and generators


def drawn(prompts: list[str], seeds: list[int], settings: GenerateSettings) -> Tensor:
    """The left half red for even seeds, blue for odd ones; features of the two have nothing in common."""
    assert settings.height is not None
    assert settings.width is not None
    images = torch.zeros(len(prompts), 3, settings.height, settings.width)
    for place, seed in enumerate(seeds):
        images[place, 2 * (seed % 2), :, : settings.width // 2] = 1
    return images


def test_drawn_images_that_are_none_are_flagged_one_by_one(tmp_path: Path) -> None:
    def torn(prompts: list[str], seeds: list[int], settings: GenerateSettings) -> Tensor:
        images = drawn(prompts, seeds, settings)
        images[0], images[1] = torch.nan, 0.5
        return images

    done = start(rig(wrap(generator=torn, size=16)), [Consistency(("a",), repetitions=5, num_inference_steps=1)], tmp_path / "run")
    assert done.records("consistency")["flag"].fillna("").tolist() == ["not finite", "constant", "", "", ""]


def test_a_generator_of_known_features_has_that_consistency(tmp_path: Path) -> None:
    """Two of four images alike, and the other two: 2 of 6 pairs have cosine 1, the others 0."""
    probe = Consistency(("a star", "a square"), repetitions=4, num_inference_steps=1)
    done = start(rig(wrap(generator=drawn, size=16)), [probe], tmp_path / "a")
    (score,) = [e for e in done.estimates if e.quantity == "scs:pixels" and not e.facets]
    assert score.value == pytest.approx(100 / 3)
    wide = start(rig(wrap(generator=drawn, size=16)), [replace(probe, width=24)], tmp_path / "b").records("consistency")
    assert {*wide["height"]} == {16}
    assert {*wide["width"]} == {24}


def forms(images: Tensor) -> dict[str, Any]:
    last = images.permute(0, 2, 3, 1)
    bytes_ = (images * 255).round().to(torch.uint8)
    return {
        "tensor": images,
        "double": images.double(),
        "bfloat16": images.bfloat16(),
        "bytes": bytes_,
        "list": list(images),
        "channels last": last.numpy(),
        "channels first": images.numpy(),
        "array of bytes": bytes_.permute(0, 2, 3, 1).numpy(),
        "pil": [Image.fromarray(one.numpy()) for one in bytes_.permute(0, 2, 3, 1)],
        "grey pil": [Image.fromarray(one.numpy()).convert("L") for one in bytes_.permute(0, 2, 3, 1)],
    }


@pytest.mark.parametrize("form", sorted(forms(torch.zeros(1, 3, 2, 2))))
def test_images_come_back_in_any_usual_form(form: str) -> None:
    images = torch.linspace(0, 1, 2 * 5 * 4).reshape(2, 1, 5, 4).expand(2, 3, 5, 4)
    found = pictures(forms(images)[form], "editor", (2, 5, 4))
    assert (found.shape, found.dtype) == (images.shape, torch.float32)
    assert torch.allclose(found, images, atol=3e-3 if form == "bfloat16" else 2e-3)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "the editor gave a NoneType: give a tensor"),
        (torch.zeros(3, 3, 4, 4), "gave 3 images for 2 prompts"),
        (torch.zeros(2, 3, 8, 4), r"gave an image \[3, 8, 4\], not \[3, 4, 4\]"),
        (torch.zeros(2, 1, 4, 4), r"gave an image \[1, 4, 4\]"),
        (torch.zeros(2, 4, 4), r"gave \[4, 4\] for an image"),
        (["a.png", "b.png"], "gave a str for an image"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 6))], r"gave an image \[3, 6, 4\]"),
        (torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4), "values from -1 to 1: give floats in"),
        (255 * torch.ones(2, 3, 4, 4), "values from 255 to 255: give floats in"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), "numbers of type int64"),
        (np.zeros((2, 4, 4, 3), bool), "numbers of type bool"),
        (torch.tensor(1.0), "gave a tensor of no dimension: give a tensor"),
        (np.array(1.0), "gave an array of no dimension: give a tensor"),
        (np.zeros((2, 4, 4)), r"gave an array \[4, 4\] for an image"),
        ([Image.new("I", (4, 4))] * 2, "gave a PIL image of mode I: give one of 8 bits, such as RGB"),
        ([Image.new("I;16", (4, 4))] * 2, "PIL image of mode I;16: give one of 8 bits"),
        ([Image.new("F", (4, 4))] * 2, "PIL image of mode F: give one of 8 bits"),
    ],
)
def test_what_is_no_image_of_each_is_told_in_a_line(given: Any, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        pictures(given, "editor", (2, 4, 4))
    assert "\n" not in str(caught.value)


def test_rounding_beyond_the_range_is_cut_off() -> None:
    assert torch.equal(pictures(torch.full((1, 3, 2, 2), 1.004), "editor", (1, 2, 2)), torch.ones(1, 3, 2, 2))


# Every probe, as the conformance tests have it


def network_model(codec: Any = "auto") -> Model:
    """The exact score of the four classes, as a network of its own latents, or of pixels where it has no codec given."""
    path = PATHS["vp"]
    return wrap(says("eps", path), predicts="eps", path=path, shape=SHAPE, condition=classes, codec=codec, name="network")


ASKED: dict[str, tuple[Callable[[], Model], Probe]] = {
    "drift": (lambda: wrap(editor=noisy, size=16), Drift(count=5, prompt_sets=("empty",), strengths=(0.2, 0.4), budget=False)),
    "inverted": (
        lambda: network_model(exact_world("gmm").codec),
        Drift(count=5, prompt_sets=("empty",), strengths=(0.6,), editors=("ddim",), num_inference_steps=(5,)),
    ),
    "consistency": (lambda: wrap(generator=drawn, size=16), Consistency(("a", "b"), repetitions=3, num_inference_steps=1)),
    "geometry": (
        lambda: network_model(exact_world("gmm").codec),
        Geometry(sets=("world",), count=3, fields=(Field((1.0,), size=3),), directions=4),
    ),
    "interpolation": (
        lambda: network_model(exact_world("gmm").codec),
        Interpolation(
            groups=("snow",), count=4, num_inference_steps=3, schemes=("fix",), sizes=(2,), draws=2, offsets=(0.5,), offset_samples=2
        ),
    ),
    "speciation": (network_model, Speciation(base="", variants=("class 0",), samples=3, num_inference_steps=5, keep_images=0)),
}


@pytest.mark.parametrize("name", sorted(ASKED))
def test_order_batch_and_resuming_change_nothing(name: str, tmp_path: Path) -> None:
    make, probe = ASKED[name]
    model = make()
    check([probe], rig(model))
    steps = plan([probe])
    turned = steps[::-1]
    turned.sort(key=lambda step: depth(step.cell))
    whole, again = run(steps, rig(model), tmp_path / "a"), run(turned, rig(model), tmp_path / "b")
    assert all(whole[identity].equals(again[identity]) for identity in whole)
    close(whole, run(steps, rig(model, 2), tmp_path / "c"), 2e-3 if name == "speciation" else 1e-4)
    store = Store(tmp_path / "d")
    with store.writing():
        for part in (steps[: len(steps) // 2], steps):
            execute(part, store, rig(model), lambda state: None)
    assert all(store.get(step.probe, step.cell).equals(whole[step.key]) for step in steps)


def test_a_wrapped_world_is_measured_as_the_world_itself(tmp_path: Path) -> None:
    """Speciation of the exact score, wrapped as a network, against the exact world's own denoiser."""
    probe = Speciation(base="class 0", variants=("class 1",), samples=3, num_inference_steps=5, keep_images=0)
    world = replace(exact_model("gmm"), codec=None)
    mine, theirs = (run(plan([probe]), rig(model), tmp_path / name) for name, model in (("a", network_model()), ("b", world)))
    close(mine, theirs, 2e-3)


# What can be asked


GIVEN: dict[str, Callable[[], Model]] = {
    "a network of images": lambda: wrap(lambda x, t: x, predicts="x0", path=VarianceExploding(), shape=(3, 16, 16)),
    "a network of images, a condition": lambda: wrap(
        lambda x, t, c: x,
        predicts="x0",
        path=VarianceExploding(),
        shape=(3, 16, 16),
        condition=lambda prompts: torch.zeros(len(prompts), 2),
    ),
    "a network of latents": lambda: wrap(lambda x, t: x, predicts="x0", path=VarianceExploding(), shape=(4, 8, 8)),
    "a network of latents, a condition": network_model,
    "a network of latents, a condition, a codec": lambda: network_model(exact_world("gmm").codec),
    "a network of images, a generator": lambda: wrap(
        lambda x, t: x, predicts="x0", path=VarianceExploding(), shape=(3, 16, 16), generator=drawn, size=16
    ),
    "an editor": lambda: wrap(editor=shifted, size=16),
    "an editor without a strength": lambda: wrap(editor=shifted, size=16, strength_axis=False),
    "a generator": lambda: wrap(generator=drawn, size=16),
    "an editor, a generator": lambda: wrap(editor=shifted, generator=drawn, size=16),
}


def test_the_page_says_of_every_probe_what_it_can_be_asked() -> None:
    """The table of docs/wrap.md, row by row."""
    page = (Path(__file__).parent.parent / "docs" / "wrap.md").read_text()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")]
    head = next(index for index, row in enumerate(table) if row[0] == "what you give")
    rows = {row[0]: row[1:] for row in table[head + 1 : head + 1 + len(GIVEN)]}
    assert rows.keys() == GIVEN.keys()
    for given, make in GIVEN.items():
        for probe, cell, answer in zip(table[head][1:], rows[given], asked(make()), strict=True):
            assert answer.probe == probe
            told = "yes" + (f", {answer.why.replace('with ', '')}" if answer.why else "") if answer.can else "no"
            assert cell.replace("`", "").partition(" (")[0] == told, (given, probe, answer)


def test_what_can_be_asked_is_what_runs_start_with() -> None:
    for make in GIVEN.values():
        model = make()
        for answer in asked(model):
            (probe,) = suited([type_of(answer.probe).preset("quick")], rig(model))
            if answer.can:
                check([probe], rig(model))
            else:
                assert answer.why
                with pytest.raises(UserError):
                    check([probe], rig(model))


def type_of(name: str) -> Any:
    return {kind.name: kind for kind in (Drift, Consistency, Geometry, Interpolation, Speciation)}[name]


def test_what_is_lacking_says_how_to_give_it() -> None:
    answers = {answer.probe: answer for answer in asked(GIVEN["a network of latents"]())}
    assert answers["speciation"].why == "it has no condition: give dp.wrap a `condition` from prompts to what the network takes"
    assert "dp.Geometry(sets=(), fields=(dp.Field(sigmas=(1.0,)),))" in answers["geometry"].why
    (drift,) = asked(GIVEN["a network of latents, a condition, a codec"](), ["drift"])
    assert drift.why == "it has no editor: wrap the editor by itself, or ask dp.Drift(editors=('ddim',)), which inverts"
    assert answers["drift"].why == (
        "it has no editor: wrap the editor by itself, or give the network a `codec` between images and its x and a `condition` "
        "from prompts to what the network takes and ask dp.Drift(editors=('ddim',)), which inverts"
    )
    (drift,) = asked(GIVEN["a generator"](), ["drift"])
    assert drift.why == "it has no editor: give dp.wrap an `editor` with its `size`"
    with pytest.raises(UserError, match="unknown probe 'drft': did you mean 'drift'"):
        asked(GIVEN["an editor"](), ["drft"])


def test_a_generator_beside_a_network_without_words_is_asked_its_prompts(tmp_path: Path) -> None:
    said: list[str] = []

    def draw(prompts: list[str], seeds: list[int], settings: GenerateSettings) -> Tensor:
        said.extend(prompts)
        return drawn(prompts, seeds, settings)

    model = wrap(fine, **D, generator=draw, size=16)
    start(rig(model), suited([Consistency(("a star",), repetitions=2, num_inference_steps=1)], rig(model)), tmp_path / "run")
    assert set(said) == {"a star"}


def test_a_condition_that_does_not_know_the_presets_prompts_is_told() -> None:
    def words(prompts: Sequence[str]) -> Tensor:
        return torch.tensor([{"": 0, "cat": 1}[prompt] for prompt in prompts])

    model = wrap(lambda x, t, c: x, predicts="x0", path=VarianceExploding(), shape=(3, 16, 16), condition=words)
    (answer,) = asked(model, ["speciation"])
    assert not answer.can
    assert "KeyError" in answer.why
    assert answer.why.endswith("give the probe prompts that are")


# Bad input


def fine(x: Tensor, t: Tensor) -> Tensor:
    return x


class Odd:
    def encode(self, images: Tensor) -> Tensor:
        return images[:, :1]

    def decode(self, latents: Tensor) -> Any:
        return latents


VE = VarianceExploding()
D: dict[str, Any] = {"predicts": "x0", "path": VE, "shape": (3, 8, 8)}  # what a network needs


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "nothing to wrap: give a network, an `editor` or a `generator`"),
        ({"network": fine, "editor": shifted, "size": 8}, "two models"),
        ({"network": 3}, r"`network` \(int\) cannot be called"),
        ({"editor": shifted}, "Give `size`, their side in pixels"),
        ({"generator": drawn, "size": 0}, "Give `size`, their side in pixels"),
        ({"editor": shifted, "size": "512"}, "such as size=512, not '512'"),
        ({"editor": shifted, "size": (512, 512)}, r"such as size=512, not \(512, 512\)"),
        ({"editor": shifted, "size": 512.0}, r"such as size=512, not 512\.0"),
        ({"editor": shifted, "size": 8, "shape": (3, 8, 8)}, "`shape` says how a network is asked: leave it out"),
        ({"editor": shifted, "size": 8, "codec": PixelCodec()}, "`codec` says how a network is asked: leave it out"),
        ({"network": fine, "predicts": "x0", "shape": (3, 8, 8)}, "a network needs `path`"),
        ({"network": fine, "predicts": "x0", "path": VE}, "and `shape`, such as"),
        ({"network": fine, **D, "shape": (3, 0)}, r"without the batch, such as \(3, 32, 32\), not \(3, 0\)"),
        ({"network": fine, **D, "shape": 3}, r"such as \(3, 32, 32\), not 3"),
        ({"network": fine, **D, "shape": (3, 8, 16)}, r"decodes to \[2, 3, 8, 16\], and probes look at square images, so give a square"),
        ({"network": fine, "path": VE, "shape": (3, 8, 8)}, "what does the network predict"),
        ({"network": fine, **D, "predicts": "epsilom"}, "unknown prediction 'epsilom': did you mean 'epsilon'"),
        ({"network": fine, **D, "path": VarianceExploding}, r"no noise path: give VarianceExploding\(\)"),
        ({"network": fine, **D, "predicts": ["eps"]}, "unknown prediction .* did you mean 'eps'"),
        ({"network": fine, **D, "path": DDIMScheduler}, r"no noise path: give DDIMScheduler\(\)"),
        ({"network": fine, **D, "path": "vp"}, r"`path` \(str\) is no noise path"),
        ({"network": lambda x: x, **D}, r"the network cannot be asked \(TypeError: .*x \[2, 3, 8, 8\], t \[2\] alone"),
        ({"network": lambda x, t: x[:1], **D}, r"the network gave \[1, 3, 8, 8\] for x"),
        ({"network": lambda x, t: {"x": x}, **D}, "the network gave a dict for x"),
        ({"network": lambda x, t: x.numpy(), **D}, r"the network gave an array \[2, 3, 8, 8\] for x \[2, 3, 8, 8\]: give a tensor"),
        ({"network": fine, **D, "codec": "identity"}, "unknown codec 'identity'"),
        ({"network": fine, **D, "codec": fine}, "has no `encode` and `decode`"),
        ({"network": fine, **D, "shape": (4, 8, 8), "codec": Odd()}, r"codec's decode gave \[2, 4, 8, 8\] for"),
        ({"network": fine, **D, "codec": Odd()}, r"codec's encode gave \[2, 1, 8, 8\] for images"),
        (
            {"network": lambda x, t, c: x, **D, "condition": lambda prompts: {}[prompts[0]]},
            r"the condition cannot be asked \(KeyError: ''\): it must know the empty prompt",
        ),
    ],
)
def test_bad_parts_are_one_line_that_names_the_fix(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        wrap(**given)
    assert "\n" not in str(caught.value)


class Cosine:
    """A path of someone's own, which is no dataclass: alpha = cos t, sigma = sin t."""

    end = 0.0

    def __init__(self, last: float) -> None:
        self.last = last

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.as_tensor(t, dtype=torch.float64).cos()

    def sigma(self, t: Tensor | float) -> Tensor:
        return torch.as_tensor(t, dtype=torch.float64).sin()

    def ratio(self, t: Tensor | float) -> Tensor:
        return torch.as_tensor(t, dtype=torch.float64).tan()

    def time(self, ratio: Tensor | float) -> Tensor:
        return torch.as_tensor(ratio, dtype=torch.float64).atan()

    def levels(self, n: int) -> tuple[float, ...]:
        return tuple(self.last * (1 - i / n) for i in range(n))


def test_a_path_and_conditions_of_ones_own() -> None:
    """Any object that is a path, and conditions that are no tensors."""

    class Words(NamedTuple):
        prompts: tuple[str, ...]

    def network(x: Tensor, t: Tensor, cond: Words) -> Tensor:
        assert len(cond.prompts) == len(x)
        return says("v", path)(x, t, classes(cond.prompts))

    path = Cosine(1.5)
    model = wrap(network, predicts="v", path=path, shape=SHAPE, condition=lambda prompts: Words(tuple(prompts)))
    assert model.denoiser is not None
    x = rng.normal(SHAPE, "test.wrap", range(2))
    assert torch.allclose(model.denoiser(x, 0.7, Words(("0", ""))), MIXTURE.denoiser(path)(x, 0.7, torch.tensor([0, -1])), atol=1e-5)
    assert torch.allclose(model.denoiser(x, 0.7), MIXTURE.denoiser(path)(x, 0.7), atol=1e-5)
    digests = {wrap(fine, predicts="v", path=Cosine(last), shape=SHAPE).identity["path"] for last in (1.5, 1.5, 1.4)}
    assert len(digests) == 2


def test_schedulers_are_paths() -> None:
    vp = wrap(fine, predicts="eps", path=DDIMScheduler(**BETAS), shape=(3, 8, 8))
    assert isinstance(vp.path, VariancePreserving)
    flow = wrap(fine, path=FlowMatchEulerDiscreteScheduler(shift=3.0), shape=(3, 8, 8))
    assert isinstance(flow.path, RectifiedFlow)
    assert flow.identity["predicts"] == "flow_prediction"
