"""`python -m benchmarks.geometry_speed`: projected spectra of a decoder, against each row alone and against bare backward passes.

The floor is a forward of the same batch and k backward passes over it, nothing else. `--architecture sd15` takes Stable Diffusion's
decoder at its published size with random weights, for speed, and for what half precision does to psi and nu, alone.
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
from typing import Any

import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.measures.geometry import (
    Map,
    directions,
    jacobian_spectrum,
    jacobian_trace,
    local_complexity,
    local_rank,
    local_scaling,
    rows_that_fit,
)

RESULTS = Path(__file__).parent / "results" / "geometry_speed.jsonl"
#: Targets: times faster than each row alone, times the floor, and the largest relative difference of a singular value in float32.
FASTER, OVER_FLOOR, DIFFERENCE = 4.0, 1.3, 1e-4
#: Seconds for psi, nu and delta of a latent, on one H200 at 512 pixels.
SECONDS = {"sd15": 0.6}
#: The neighbourhood of delta.
RADIUS, DIMS = 0.01, 4
SD = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
SD_SCALE = 0.18215


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.geometry_speed", description=__doc__)
    parser.add_argument("--architecture", default="embedded", choices=("embedded", "sd15"))
    parser.add_argument("--latents", type=int, default=8)
    parser.add_argument("--directions", type=int, default=120)
    parser.add_argument("--size", type=int, default=512, help="pixels of a side, for sd15")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    f, z = {"embedded": _embedded, "sd15": _sd15}[given.architecture](given)
    outputs = f(z[:1]).numel()
    w = directions(outputs, given.directions).to(given.device)
    spectra = jacobian_spectrum(f, z[:1], w)  # also the first call of every kernel
    rows = rows_that_fit(f, z)
    told = {"rows": rows} | _measured(f, z, w, rows, given) | _precision(f, z, w, given)
    told["difference_to_rows"] = float((spectra - torch.linalg.svdvals(_row_by_row(f, z[:1], w).double())).abs().div(spectra).max())
    result = {
        "benchmark": "geometry_speed",
        **{name: round(value, 7) if isinstance(value, float) else value for name, value in told.items()},
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
    sys.exit(int(_missed(result)))


def _missed(result: dict[str, Any]) -> bool:
    """Whether a target is: the difference counts in float32 only, since half precision has its own errors, which are told."""
    slow = result["ratio_to_row_by_row"] < FASTER or result["over_floor"] > OVER_FLOOR
    wrong = result["dtype"] == "float32" and not result["difference_to_rows"] <= DIFFERENCE  # so a nan is wrong
    late = str(result["device"]).startswith("cuda") and result["all_s"] > SECONDS.get(str(result["architecture"]), float("inf"))
    return bool(slow or wrong or late)


def _measured(f: Map, z: Tensor, w: Tensor, rows: int, given: argparse.Namespace) -> dict[str, float]:
    """Seconds a latent and ratios within a round, both medians over rounds; the order changes from round to round."""
    tasks: dict[str, tuple[Callable[[], object], int]] = {
        "spectrum_s": (lambda: jacobian_spectrum(f, z, w), len(z)),
        "floor_s": (lambda: _floor(f, z, w, rows), len(z)),
        "row_by_row_s": (lambda: _row_by_row(f, z[:1], w), 1),
        "complexity_s": (lambda: local_complexity(f, z, RADIUS, DIMS), len(z)),
        "trace_s": (lambda: jacobian_trace(f, z, range(10)), len(z)),
        "forwards_apart_s": (lambda: _forwards(f, z, rows, joint=False), len(z)),
        "forwards_joint_s": (lambda: _forwards(f, z, rows, joint=True), len(z)),
    }
    rounds = []
    for index in range(given.rounds):
        order = list(tasks)[index % len(tasks) :] + list(tasks)[: index % len(tasks)]
        rounds.append({name: _timed(given.device, tasks[name][0]) / tasks[name][1] for name in order})
    found = {name: median(one[name] for one in rounds) for name in tasks}
    return found | {
        "all_s": found["spectrum_s"] + found["complexity_s"],
        "ratio_to_row_by_row": median(one["row_by_row_s"] / one["spectrum_s"] for one in rounds),
        "over_floor": median(one["spectrum_s"] / one["floor_s"] for one in rounds),
        "complexity_share": median(one["complexity_s"] / one["spectrum_s"] for one in rounds),
        "joint_forward_would_save": median((one["forwards_apart_s"] - one["forwards_joint_s"]) / one["spectrum_s"] for one in rounds),
    }


def _precision(f: Map, z: Tensor, w: Tensor, given: argparse.Namespace) -> dict[str, float]:
    """What half precision does to psi and nu: against the same weights and latents in float32."""
    if given.dtype == "float32":
        return {}
    half = jacobian_spectrum(f, z, w)
    single, _ = {"embedded": _embedded, "sd15": _sd15}[given.architecture](argparse.Namespace(**{**vars(given), "dtype": "float32"}))
    full = jacobian_spectrum(single, z.float(), w)
    psi, nu = (measure(half) - measure(full) for measure in (local_scaling, local_rank))
    spread = float(local_scaling(full).std()) if len(z) > 1 else float("nan")
    return {"psi_error": float(psi.abs().max()), "psi_bias": float(psi.mean()), "psi_spread": spread, "nu_error": float(nu.abs().max())}


def _timed(device: str, task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _floor(f: Map, z: Tensor, w: Tensor, rows: int) -> None:
    """k plain backward passes over each batch."""
    for part in z.split(rows):
        x = part.clone().requires_grad_()
        y = f(x)
        for row in w.to(y):
            torch.autograd.grad(y, x, row.expand(len(x), -1).reshape(y.shape), retain_graph=True)


def _row_by_row(f: Map, z: Tensor, w: Tensor) -> Tensor:
    """Each latent and direction alone, by the library's own function: [B, k, E]."""
    found = []
    for one in z:
        shape = f(one[None]).shape
        found += [torch.autograd.functional.vjp(f, one[None], row.to(one).reshape(shape))[1].flatten() for row in w]
    return torch.stack(found).reshape(len(z), len(w), -1)


def _forwards(f: Map, z: Tensor, rows: int, *, joint: bool) -> None:
    """The forwards of psi, nu (with a graph) and delta (of its vertices, without): in batches of their own, or in common ones."""
    for part in z.split(rows):
        vertices = part.repeat_interleave(2 * DIMS, 0)
        if joint:
            f(torch.cat([part, vertices]).requires_grad_())
        else:
            f(part.clone().requires_grad_())
            with torch.no_grad():
                f(vertices)


def _embedded(given: argparse.Namespace) -> tuple[Map, Tensor]:
    from diffprobe.adapters.load import load

    codec: Any = load("embedded", device=given.device).codec
    dtype = getattr(torch, given.dtype)
    if dtype != torch.float32:
        codec.vae.to(dtype)
    return lambda z: 2 * codec.decode(z) - 1, rng.normal((4, 16, 16), "benchmark.latents", range(given.latents)).to(given.device, dtype)


def _sd15(given: argparse.Namespace) -> tuple[Map, Tensor]:
    """Random weights of the usual size, the same for every dtype; latents in the scale of the diffusion, images in [-1, 1]."""
    from diffusers import AutoencoderKL

    dtype, side = getattr(torch, given.dtype), given.size // 8
    with torch.device(given.device):
        vae = AutoencoderKL(**SD).eval().requires_grad_(False)
    for index, (name, weights) in enumerate([*vae.decoder.named_parameters(), *vae.post_quant_conv.named_parameters()]):
        if weights.ndim > 1:
            drawn = torch.from_numpy(rng.stream("benchmark.vae", index).standard_normal(tuple(weights.shape), dtype="float32"))
            weights.copy_(drawn / weights[0].numel() ** 0.5)
        else:
            weights.fill_(0 if name.endswith("bias") else 1)
    vae = vae.to(dtype)
    z = rng.normal((4, side, side), "benchmark.latents", range(given.latents)).to(given.device, dtype)
    return lambda x: vae.decode(x / SD_SCALE).sample, z


if __name__ == "__main__":
    main()
