"""`python -m benchmarks.generation`: how fast the embedded model draws, against plain diffusers and against the arithmetic alone."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median

import torch
from diffusers import StableDiffusionPipeline
from torch.utils.flop_counter import FlopCounterMode

from diffprobe import rng
from diffprobe.adapters.embedded import folder
from diffprobe.adapters.load import load
from diffprobe.model import GenerateSettings, Model

RESULTS = Path(__file__).parent / "results" / "generation.jsonl"
STEPS, GUIDANCE, TARGET = 50, 5.0, 3.0  # images a second that two processor cores must reach
PROMPT = "a large red star with a window at night"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load("embedded", device=given.device, torch_dtype=given.dtype)
    plain = StableDiffusionPipeline.from_pretrained(folder(), torch_dtype=getattr(torch, given.dtype)).to(given.device)
    plain.set_progress_bar_config(disable=True)
    _ours(model, 2)
    rounds = [(_ours(model, given.batch), _plain(plain, 4), _arithmetic(given.device, given.dtype)) for _ in range(given.rounds)]
    ours, theirs, rate = (median(part) for part in zip(*rounds, strict=True))
    work = _operations(model)
    result = {
        "benchmark": "generation",
        "images_per_s": round(ours, 3),
        "target": TARGET,
        "one_at_a_time_per_s": round(theirs, 3),
        "ratio": round(ours / theirs, 3),
        "gflop_per_image": round(work / 1e9, 2),
        "matmul_gflops": round(rate / 1e9, 1),
        "share_of_matmul_rate": round(ours * work / rate, 3),
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
    sys.exit(int(given.device == "cpu" and ours < TARGET))


def _ours(model: Model, n: int) -> float:
    assert model.generator is not None
    started = time.perf_counter()
    model.generator.generate([PROMPT] * n, range(n), GenerateSettings(STEPS, GUIDANCE)).cpu()
    return n / (time.perf_counter() - started)


def _plain(pipe: StableDiffusionPipeline, n: int) -> float:
    started = time.perf_counter()
    for generator in rng.generators(range(n)):
        pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator, output_type="pt")
    return n / (time.perf_counter() - started)


def _arithmetic(device: str, dtype: str, side: int = 1024) -> float:
    """Operations a second of a plain matrix product, which bounds what the network can reach."""
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    for _ in range(3):
        a @ b
    started, times = time.perf_counter(), 20
    for _ in range(times):
        c = a @ b
    c.cpu()
    return 2 * side**3 * times / (time.perf_counter() - started)


def _operations(model: Model) -> float:
    """Floating-point operations of an image: two evaluations a step, and one decoding."""
    assert model.denoiser is not None
    assert model.codec is not None
    x = torch.randn(1, 4, 16, 16, device=model.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.denoiser(x, 500, None)
    evaluation = counted.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.codec.decode(x)
    return float(2 * STEPS * evaluation + counted.get_total_flops())


if __name__ == "__main__":
    main()
