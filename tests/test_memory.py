"""Planned memory: known answers of the counting, plan against measurement for networks of every kind, and probes within their plan."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from diffprobe.adapters.codecs import VaeCodec
from diffprobe.adapters.exact import exact_model
from diffprobe.adapters.load import load, load_embedder
from diffprobe.adapters.outline import outline
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.measures.geometry.memory import fitting, footprint
from diffprobe.measures.geometry.passes import pull
from diffprobe.model import Model, Rig
from diffprobe.probes.base import Load, Probe, key
from diffprobe.probes.consistency import Consistency
from diffprobe.probes.drift import Drift
from diffprobe.probes.geometry import Geometry
from diffprobe.probes.geometry.settings import Field
from diffprobe.probes.interpolation import Interpolation
from diffprobe.probes.speciation import Speciation
from diffprobe.runs.execute import plan
from diffprobe.runs.memory import Foreseen, Line, Primitives, foreseen, gibibytes, instruments, planned, primitives, weights
from diffprobe.runs.storages import kept, peak

CPU = torch.device("cpu")
EVERY = Load(network=1, encode=1, decode=1, graph=1, directions=1, chain=1, tuned=1)
DEVICES = pytest.mark.parametrize("device", ["cpu", "meta"])


@DEVICES
def test_a_peak_is_what_lives_at_once(device: str) -> None:
    """Three tensors of 4,000 bytes are made, and at most two live at a time."""

    def call() -> Tensor:
        first = torch.zeros(1000, device=device)
        second = first + 1
        del first
        return second + 1

    assert peak(call) == 8_000
    assert peak(lambda: torch.zeros(500, device=device)) == 2_000


@DEVICES
def test_views_changes_in_place_and_what_was_there_before_count_nothing(device: str) -> None:
    held = nn.Linear(64, 64).to(device).requires_grad_(False)
    assert peak(lambda: held.weight.t()[3:].add_(1)) == 0
    assert peak(lambda: torch.zeros(100, device=device).reshape(10, 10).t().add_(1).relu_()) == 400
    with torch.no_grad():
        assert peak(lambda: held(torch.zeros(8, 64, device=device))) == 2 * 8 * 64 * 4


@DEVICES
def test_a_graph_keeps_each_storage_once(device: str) -> None:
    """x times x keeps x alone, by two names; the exponential keeps its result."""

    def call() -> Tensor:
        x = torch.zeros(1000, device=device, requires_grad=True)
        return (x * x).exp()

    assert kept(call) == 8_000


@DEVICES
def test_attention_has_no_matrix_of_tokens_by_tokens(device: str) -> None:
    """1,024 tokens of 2 heads: the matrix alone would take 8 MiB, and all that there is takes 1.

    With a mask as a transformer has it, too: true where a token counts.
    """
    shape, tokens = (1, 2, 1024, 16), 1024
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=device)

    def call(asked: Tensor | None) -> Tensor:
        query, key, value = (torch.zeros(shape, device=device) for _ in range(3))
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=asked)

    with torch.no_grad():
        assert peak(partial(call, None)) == 4 * 2 * tokens * 16 * 4 + 2 * tokens * 4  # three, the answer, and a sum a token
        assert 4 * tokens**2 < peak(partial(call, mask)) < 4 * tokens**2 + (1 << 20)


UNET: dict[str, dict[str, Any]] = {
    "tiny": {"sample_size": 16, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 2},
    "mid": {"sample_size": 32, "block_out_channels": (64, 128), "norm_num_groups": 32, "attention_head_dim": 8},
}
VAE: dict[str, dict[str, Any]] = {
    "tiny": {"block_out_channels": (8, 16), "norm_num_groups": 4},
    "mid": {"block_out_channels": (32, 64, 128)},
}
SD3: dict[str, dict[str, Any]] = {"tiny": {"num_layers": 1, "num_attention_heads": 2}, "mid": {"num_layers": 4, "num_attention_heads": 8}}


def unet(size: str, device: str) -> Callable[[int], Tensor]:
    levels = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    with torch.device(device):
        network = UNet2DConditionModel(cross_attention_dim=32, layers_per_block=1, **levels, **UNET[size]).eval()
    side = network.config.sample_size

    def call(rows: int) -> Tensor:
        x, text = torch.zeros(rows, 4, side, side, device=device), torch.zeros(rows, 16, 32, device=device)
        found: Tensor = network(x, torch.ones(rows, device=device), encoder_hidden_states=text).sample
        return found

    return call


def transformer(size: str, device: str) -> Callable[[int], Tensor]:
    widths = {"attention_head_dim": 16, "joint_attention_dim": 32, "caption_projection_dim": 16 * SD3[size]["num_attention_heads"]}
    with torch.device(device):
        network = SD3Transformer2DModel(sample_size=32, pooled_projection_dim=32, pos_embed_max_size=32, **widths, **SD3[size])
    network = network.eval().to(device)

    def call(rows: int) -> Tensor:
        x, text = torch.zeros(rows, 16, 32, 32, device=device), torch.zeros(rows, 16, 32, device=device)
        told = {"pooled_projections": torch.zeros(rows, 32, device=device), "timestep": torch.ones(rows, device=device)}
        found: Tensor = network(x, encoder_hidden_states=text, **told).sample
        return found

    return call


def vae(size: str, device: str) -> VaeCodec:
    levels = len(VAE[size]["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    with torch.device(device):
        return VaeCodec(AutoencoderKL(**blocks, **VAE[size]).eval(), torch.device(device))


def encode(size: str, device: str) -> Callable[[int], Tensor]:
    codec = vae(size, device)
    return lambda rows: codec.encode(torch.zeros(rows, 3, 64, 64, device=device))


def decode(size: str, device: str) -> Callable[[int], Tensor]:
    codec = vae(size, device)
    return lambda rows: codec.decode(torch.zeros(rows, 4, 16, 16, device=device))


def graph(size: str, device: str) -> Callable[[int], Tensor]:
    """Backward passes through one decoding."""
    codec = vae(size, device)

    def call(rows: int) -> Tensor:
        z = torch.zeros(rows, 4, 16, 16, device=device)
        outputs = codec.decode(z)[0].numel()
        return pull(codec.decode, z, rows, torch.zeros(2, outputs, device=device), outputs)

    return call


@pytest.mark.parametrize("size", ["tiny", "mid"])
@pytest.mark.parametrize("made", [unet, transformer, encode, decode, graph])
def test_the_plan_is_what_is_measured(made: Callable[[str, str], Callable[[int], Tensor]], size: str) -> None:
    """Within a thousandth, where a tenth is asked: the same operations make the same tensors, with numbers in them or without."""
    with torch.no_grad():
        foretold, found = peak(partial(made(size, "meta"), 3)), peak(partial(made(size, "cpu"), 3))
    assert found > 100_000
    assert abs(foretold / found - 1) < 1e-3


@pytest.mark.parametrize("family", ["sd3", "pixart", "edm"])
def test_what_a_saved_pipeline_takes_is_known_before_it_is_loaded(pipelines: Callable[[str], Path], family: str) -> None:
    """From two and eight rows to five. Text is left aside, for whose length a family has its usual number of tokens."""
    folder = str(pipelines(family))
    told = primitives(outline(folder, LoadOptions("cpu")).model, EVERY)
    model = load(folder, device="cpu")
    assert dict(told.weights) == weights(model)
    assert model.codec is not None
    assert model.shape is not None
    latents, image = torch.zeros(5, *model.shape), torch.zeros(5, 3, *[told_side(model)] * 2)
    codec = model.codec
    with torch.no_grad():
        assert told.decode.at(5) == pytest.approx(peak(lambda: codec.decode(latents.clone())), rel=0.01)
        assert told.encode.at(5) == pytest.approx(peak(lambda: codec.encode(image.clone())), rel=0.01)
    seen = footprint(codec.decode, latents)
    assert told.kept == pytest.approx(seen.kept, rel=0.01)
    assert told.outputs == seen.outputs


def told_side(model: Model) -> int:
    assert model.codec is not None
    with torch.no_grad():
        return int(model.codec.decode(torch.zeros(1, *model.shape or ())).shape[-1])


def test_the_network_of_the_embedded_model_is_planned_within_a_tenth() -> None:
    """Forward, and as null-text differentiates it; the plan has 77 tokens of text and the model fewer."""
    plan, found = (primitives(model, EVERY) for model in (outline("embedded", LoadOptions("cpu")).model, load("embedded", device="cpu")))
    for name in ("network", "tuned"):
        assert getattr(plan, name).at(16) == pytest.approx(getattr(found, name).at(16), rel=0.1)
    assert plan.chained == pytest.approx(found.chained, rel=0.1)
    assert (plan.encode, plan.decode, plan.graph, plan.kept) == (found.encode, found.decode, found.graph, found.kept)


def test_a_larger_image_takes_more_by_its_area() -> None:
    model = outline("embedded", LoadOptions("cpu")).model
    small, large = (primitives(model, Load(network=1, decode=1), size) for size in (None, 256))
    assert large.outputs == 16 * small.outputs
    assert large.decode.row == pytest.approx(16 * small.decode.row, rel=0.01)
    assert large.network.row == pytest.approx(16 * small.network.row, rel=0.02)  # but for text and time
    assert large.weights == small.weights


def test_half_precision_halves_the_network_and_not_the_autoencoder() -> None:
    whole, half = (weights(outline("embedded", LoadOptions("cpu", dtype)).model) for dtype in ("float32", "bfloat16"))
    assert half["network"] == whole["network"] / 2
    assert half["codec"] == whole["codec"]


MIB = 1 << 20
TAKES = Primitives({"network": 5 * MIB, "codec": MIB}, Line(0, 2 * MIB), Line(10, 3 * MIB), Line(0, 4 * MIB), Line(0, 20 * MIB), 16 * MIB)


def test_a_probe_needs_all_weights_and_its_largest_call() -> None:
    def calls(**load: int) -> int:
        return planned(Foreseen(TAKES, Load(**load)), CPU, 8 << 30) - 6 * MIB

    assert calls() == 0
    assert calls(network=16) == 32 * MIB
    assert calls(network=16, guided=16) == 64 * MIB
    assert calls(network=16, encode=16, decode=4) == 48 * MIB + 10
    assert calls(network=1, decode=16) == 64 * MIB


def test_the_decoders_graph_has_as_many_rows_as_geometry_gives_it() -> None:
    """64 MiB on a CPU are enough, which are four rows of 16; what takes more goes alone, and two are tried at first."""
    assert fitting(16 * MIB, CPU, 8 << 30) == 4
    assert planned(Foreseen(TAKES, Load(graph=100)), CPU, 8 << 30) == 6 * MIB + 4 * 20 * MIB
    assert planned(Foreseen(TAKES, Load(graph=2)), CPU, 8 << 30) == 6 * MIB + 2 * 20 * MIB
    assert planned(Foreseen(TAKES, Load(graph=100)), CPU, 128 * MIB) == 6 * MIB + 2 * 16 * MIB
    assert planned(Foreseen(TAKES, Load(graph=100)), CPU, 24 * MIB) == 6 * MIB + 20 * MIB
    wide = Primitives({}, graph=Line(0, MIB), kept=MIB, outputs=1000)
    assert planned(Foreseen(wide, Load(graph=1, directions=24)), CPU, 8 << 30) == 2 * MIB + 4 * 24 * 1000


EDIT: dict[str, Any] = {"strengths": (1.0,), "num_inference_steps": (2,), "prompt_sets": ("empty",)}
FEW: dict[str, Any] = {"schemes": ("nin",), "sizes": (2,), "controls": (), "mixed": ("images",), "mixtures": ("centroid",), "offsets": ()}
SMALL: dict[str, Probe] = {
    "drift": Drift(count=16, budget=False, **EDIT),
    "drift by null-text": Drift(count=4, budget=False, editors=("null-text",), **EDIT),
    "consistency": Consistency(count=1, repetitions=16, num_inference_steps=2),
    "geometry": Geometry(sets=("world",), count=8, directions=4),
    "geometry of a chain": Geometry(sets=(), priors=2, prior_steps=2, directions=2, dims=1),
    "interpolation": Interpolation(groups=("snow",), count=16, draws=2, num_inference_steps=2, replayed=1, **FEW),
    "speciation": Speciation(samples=16, num_inference_steps=2, keep_images=0),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_probe_keeps_to_its_plan(name: str) -> None:
    """On the embedded model, every tensor of every cell counted, against the plan made from its files."""
    probe = SMALL[name]
    rig = Rig(load("embedded", device="cpu"), {"embedded": load_embedder("embedded", LoadOptions("cpu"))}, 16)
    asked = foreseen(outline("embedded", LoadOptions("cpu")).model, [probe], rig.batch_size)[probe.name]
    expected = planned(asked, CPU) - sum(asked.takes.weights.values())
    assert peak(lambda: measure(probe, rig)) == pytest.approx(expected, rel=0.1)


def measure(probe: Probe, rig: Rig) -> None:
    records: dict[str, pa.Table] = {}
    for step in plan([probe]):
        records[step.key] = step.cell.measure(rig, *(records[key(one)] for one in step.cell.inputs()))


def test_an_exact_world_is_planned_by_asking_it() -> None:
    asked = foreseen(exact_model("gmm"), [Consistency(), Speciation()], 16)["speciation"]
    assert sum(asked.takes.weights.values()) == 0
    assert 0 < planned(asked, CPU) < MIB


def test_a_probe_of_larger_images_is_planned_at_their_size() -> None:
    """Beside one at the native size, of which it takes four times as much; a size that is given goes before either."""
    model = outline("embedded", LoadOptions("cpu")).model
    probes: list[Probe] = [Consistency(height=128, width=64), Interpolation()]
    found = foreseen(model, probes, 4)
    assert found["consistency"].takes.decode.row == pytest.approx(4 * found["interpolation"].takes.decode.row, rel=0.01)
    assert len({one.takes.outputs for one in foreseen(model, probes, 4, 64).values()}) == 1


def test_what_a_model_lacks_takes_nothing() -> None:
    codec = Model(name="codec", codec=vae("tiny", "meta"), device="meta", shape=(4, 16, 16))
    takes = primitives(codec, EVERY)
    assert takes.network == Line()
    assert takes.decode.row > 0
    assert primitives(Model(name="nothing"), EVERY) == Primitives({"network": 0, "codec": 0, "text encoders": 0})


def test_loads_say_what_is_batched() -> None:
    assert Consistency(repetitions=5).load(16) == Load(network=5, guided=5, decode=5)
    assert Consistency(guidance_scale=1).load(8) == Load(network=8, decode=8)
    assert Speciation().load(16).network == 32  # 16 trajectories of a variant, which is asked beside its base
    assert Speciation().load(3).network == 6  # the base, beside its five variants
    assert Speciation(samples=2).load(16).network == 12
    assert Interpolation(resolution=64).load(4) == Load(network=4, encode=4, decode=4, side=64)
    assert Interpolation(inversion="null-text", guidance_scale=7.5).load(4).tuned == 4
    assert Geometry().load(1) == Load(encode=1, decode=8, graph=16 * 120, directions=120)
    assert Geometry(sets=(), fields=(Field(sigmas=(1.0,)),)).load(4) == Load(network=8, graph=16 * 120, directions=120, chain=1)
    assert Drift(editors=("ddim",)).load(16) == Load(network=16, encode=16, decode=16)
    assert Load(network=1, decode=5).with_largest(Load(network=3, encode=2)) == Load(network=3, encode=2, decode=5)


def test_an_instruments_weights_count() -> None:
    clip = load_embedder("embedded", LoadOptions("cpu"))
    numbers: Any = clip
    assert instruments([clip, clip]) == sum(part.nbytes for part in (*numbers.model.parameters(), *numbers.model.buffers()))


def test_a_size_that_the_model_does_not_run_at_is_refused() -> None:
    with pytest.raises(UserError, match=r"does not run at 64 pixels .*: leave the size out, or take a multiple of 64"):
        foreseen(exact_model("gmm"), [Consistency()], 16, 64)


def test_sizes_are_told_as_devices_have_them() -> None:
    assert [gibibytes(size) for size in (0, 90 * MIB, 3 << 29)] == ["0 MiB", "90 MiB", "1.5 GiB"]
