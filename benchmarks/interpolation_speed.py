"""`python -m benchmarks.interpolation_speed`: mixing latents by every scheme, against the plain weighted sum of the same latents.

The latents come from memory every time: each call takes another copy, and all of them together are larger than a processor's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.measures.interpolation import MEANS, NORMS, Scheme, mix

RESULTS = Path(__file__).parent / "results" / "interpolation_speed.jsonl"
#: Target: times the plain sum, for one mixture. But the mean on the sphere needs all inner products, whose time is its floor.
OVER_PLAIN = 2.0
EXEMPT = ("slerp", "products")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interpolation_speed", description=__doc__)
    parser.add_argument("--latents", type=int, default=64)
    parser.add_argument("--shape", type=int, nargs=3, default=(4, 128, 128), help="channels, height, width: of SDXL at 1024 pixels")
    parser.add_argument("--mixtures", type=int, default=64, help="of the same latents at once, for the second table")
    parser.add_argument("--means", nargs="+", default=("none", "channel"), choices=MEANS)
    parser.add_argument("--copies", type=int, default=8, help="1: latents that are in the cache already")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    one = rng.normal(given.shape, "benchmark.latents", range(given.latents)).to(given.device)
    latents = [one.clone() for _ in range(given.copies)]
    found = {count: _measured(latents, count, given) for count in (1, given.mixtures)}
    result = {
        "benchmark": "interpolation_speed",
        **{f"{name}_of_{count}": values for count, told in found.items() for name, values in told.items()},
        "largest_error": _largest_error(one),
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
    """Whether a target is, or a mixture is not what the plain formula gives."""
    slow = [name for name, ratio in result["ratios_of_1"].items() if ratio > OVER_PLAIN and not name.startswith(EXEMPT)]
    return bool(slow) or not result["largest_error"] < 1e-5


def _measured(latents: list[Tensor], count: int, given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of the plain sum and of the inner products, and ratios to the former within a round: medians over rounds."""
    weights = torch.from_numpy(rng.stream("benchmark.weights", count).dirichlet([1.0] * given.latents, count))
    plain = weights.float().to(given.device)
    tasks: dict[str, Callable[[Tensor], object]] = {
        "plain": lambda z: plain @ z.flatten(1),
        "products": lambda z: z.flatten(1) @ z.flatten(1).T,
    }
    for norm, mean in product(NORMS, given.means):
        tasks[str(Scheme(norm, mean))] = partial(mix, weights=weights, scheme=Scheme(norm, mean))
    supply, rounds = cycle(latents), []
    for index in range(2 + (given.rounds if count == 1 else max(3, given.rounds // 5))):
        order = list(tasks)[index % len(tasks) :] + list(tasks)[: index % len(tasks)]
        rounds.append({name: _timed(given.device, tasks[name], next(supply)) for name in order})
    kept = rounds[2:]
    ratios = {name: round(median(one[name] / one["plain"] for one in kept), 3) for name in tasks if name != "plain"}
    return {"plain_ms": round(1e3 * median(one["plain"] for one in kept), 4), "ratios": ratios}


def _timed(device: str, task: Callable[[Tensor], object], z: Tensor) -> float:
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    task(z)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _largest_error(z: Tensor) -> float:
    """Of "nin/channel" against the formula as it is written, in float64."""
    wide = z.double()
    d = wide.mean((2, 3), keepdim=True)
    m, lengths = (wide - d).mean(0), torch.linalg.vector_norm((wide - d).flatten(1), dim=1)
    truth = d.mean(0) + lengths.mean() * m / torch.linalg.vector_norm(m)
    equal = torch.full((1, len(z)), 1 / len(z), dtype=torch.float64)
    return float((mix(z, equal, Scheme("nin", "channel")).latents[0] - truth).abs().max())


if __name__ == "__main__":
    main()
