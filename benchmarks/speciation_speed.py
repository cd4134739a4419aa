"""`python -m benchmarks.speciation_speed`: a speciation profile, against its evaluations alone and against two conditions asked in turn.

The floor is the network: samples x steps x conditions evaluations. `--architecture sd15` and `edm2-xs` take those networks at their
published size with random weights, for speed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.load import load
from diffprobe.model import Model
from diffprobe.paths import VarianceExploding, VariancePreserving
from diffprobe.probes.speciation import Speciation
from diffprobe.probes.speciation.panel import Asked, Panel, alone, follow
from diffprobe.sampling import Sampler, start, trajectory

RESULTS = Path(__file__).parent / "results" / "speciation_speed.jsonl"
TARGETS = {"embedded": 40.0, "sd15": 240.0, "edm2-xs": 10.0}  # seconds of a profile: on two processor cores, on one H200, on one H200
SIZES = {"embedded": (128, 50), "sd15": (400, 100), "edm2-xs": (300, 64)}  # samples of both sides together, steps
OVERHEAD = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speciation_speed", description=__doc__)
    parser.add_argument("--architecture", default="embedded", choices=sorted(SIZES))
    parser.add_argument("--batch", type=int, default=128, help="rows of a network call, both conditions together")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison of one batch with its evaluations alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = {"embedded": _embedded, "sd15": _sd15, "edm2-xs": _edm2}[given.architecture](given.device, given.dtype)
    samples, steps = SIZES[given.architecture]
    sides = _sides(given.architecture)
    rows = given.batch // 2
    follow(model, Asked(sides), range(rows), 2)
    rounds = [
        [
            _timed(given.device, task)
            for task in (
                lambda: follow(model, Asked(sides), range(rows), steps),
                lambda: _alone(model, sides, rows, steps),
                lambda: _in_turn(model, sides, rows, steps),
            )
        ]
        for _ in range(given.rounds)
    ]
    ours, network, turns = (median(part) for part in zip(*rounds, strict=True))
    overhead = median(mine / bare - 1 for mine, bare, _ in rounds)
    whole = _timed(given.device, lambda: _profile(model, sides, samples, steps, rows))
    result = {
        "benchmark": "speciation_speed",
        "profile_s": round(whole, 2),
        "target_s": TARGETS[given.architecture],
        "evaluations": 2 * samples * steps,
        "evaluations_per_s": round(2 * samples * steps / whole, 1),
        "bookkeeping": round(overhead, 4),
        "ratio_to_conditions_in_turn": round(turns / ours, 3),
        "batch_s": round(ours, 3),
        "network_s": round(network, 3),
        **vars(given),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "accelerator": torch.cuda.get_device_name() if given.device.startswith("cuda") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(int(whole > TARGETS[given.architecture] or overhead > OVERHEAD))


def _sides(architecture: str) -> tuple[str, str]:
    probe = Speciation()
    return (probe.variants[1], probe.base) if architecture == "embedded" else ("class 3", "")


def _timed(device: str, task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _profile(model: Model, sides: tuple[str, str], samples: int, steps: int, rows: int) -> None:
    """All trajectories of both sides, in batches."""
    for asked in (Asked(sides), Asked(sides[::-1])):
        for begin in range(0, samples // 2, rows):
            follow(model, asked, range(begin, min(begin + rows, samples // 2)), steps)


@torch.no_grad()
def _alone(model: Model, sides: tuple[str, str], rows: int, steps: int) -> None:
    """The same evaluations, batched alike, with no step between them."""
    assert model.path is not None
    assert model.shape is not None
    panel = Panel(model, Asked(sides), rows)
    x = start(model.path, model.path.levels(steps)[0], model.shape, range(rows)).to(model.device, torch.float32)
    for t in model.path.levels(steps):
        panel(x, t)


@torch.no_grad()
def _in_turn(model: Model, sides: tuple[str, str], rows: int, steps: int) -> None:
    """The plain way: sample with one condition, ask the other about the same state in a call of its own."""
    assert model.path is not None
    assert model.shape is not None
    own, other = (alone(model, side, rows) for side in sides)
    times = model.path.levels(steps)
    x = start(model.path, times[0], model.shape, range(rows)).to(model.device, torch.float32)
    for state in trajectory(own, model.path, x, times, sampler=Sampler(1.0, tuple(range(rows)))):
        if state.step < steps:
            other(state.x, state.t)


def _embedded(device: str, dtype: str) -> Model:
    return load("embedded", device=device, torch_dtype=dtype)  # type: ignore[arg-type]


def _sd15(device: str, dtype: str) -> Model:
    """Stable Diffusion 1.5's U-Net with random weights, and random text states for any prompt."""
    from diffusers import UNet2DConditionModel

    from diffprobe.adapters.denoisers import Convention
    from diffprobe.adapters.families.stable_diffusion import UNetDenoiser

    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
    unet = unet.to(getattr(torch, dtype)).eval()
    states = rng.normal((77, 768), "benchmark.text", [0]).to(device, getattr(torch, dtype))
    path = VariancePreserving.scaled_linear()

    def condition(prompts: object) -> Tensor:
        return states.expand(len(prompts), -1, -1)  # type: ignore[arg-type]

    denoiser = UNetDenoiser(unet, Convention(path, "epsilon"), condition)
    return Model("sd15", path=path, denoiser=denoiser, condition=condition, device=device, shape=(4, 64, 64))


def _edm2(device: str, dtype: str) -> Model:
    """EDM2-XS at 512 pixels with random weights, conditional and unconditional in one network."""
    from diffprobe.adapters.edm2_denoiser import Edm2Denoiser, classes_by_name
    from diffprobe.adapters.edm2_network import Edm2, preset, untrained

    network = Edm2(preset("xs"))
    network.load_state_dict(untrained(preset("xs")))
    denoiser = Edm2Denoiser(network.settle(getattr(torch, dtype)).to(device))
    return Model("edm2-xs", path=VarianceExploding(), denoiser=denoiser, condition=classes_by_name(1000), device=device, shape=(4, 64, 64))


if __name__ == "__main__":
    main()
