"""Planned memory of every probe against what it takes: by live tensors, and by the process's own size. Run: python -m benchmarks.memory

Each probe runs in a process of its own, with few steps and one whole batch of every kind of call. `planned` and `tensors` are peaks of
tensors beyond the weights, `ratio` the second over the first; `process` is by how much the resident size grew, with what kernels, the
allocator and libraries take beside, and `in all` the ratio of weights and growth to weights and plan.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffprobe.adapters.embedded import folder
from diffprobe.adapters.load import load_embedder
from diffprobe.adapters.weights import LoadOptions, quiet
from diffprobe.model import Model, Rig
from diffprobe.probes import PROBES
from diffprobe.probes.base import Probe
from diffprobe.runs.execute import plan
from diffprobe.runs.memory import foreseen, gibibytes, planned, weights
from diffprobe.runs.storages import peak

STEPS = 2
MIXED: dict[str, Any] = {
    "groups": ("snow",),
    "sizes": (2,),
    "schemes": ("nin",),
    "controls": (),
    "mixed": ("images",),
    "mixtures": ("centroid",),
    "offsets": (),
    "replayed": 1,
    "num_inference_steps": STEPS,
}
RESULTS = Path(__file__).parent / "results" / "memory.jsonl"


def main() -> None:
    """Measure each probe in a process of its own, print a table, and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["embedded", "sd15"], default="embedded")
    parser.add_argument("--size", type=int, help="side of sd15's images in pixels", default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--probes", default=",".join(PROBES))
    parser.add_argument("--one", help="measure this probe here, and print what was found")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measured(asked.one, asked.model, asked.size, asked.batch)))
        return
    rows = []
    print(f"{'probe':<14}{'weights':>10}{'planned':>10}{'tensors':>10}{'ratio':>8}{'process':>10}{'in all':>8}")
    for name in asked.probes.split(","):
        told = subprocess.run([sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--one", name], capture_output=True, check=True)
        row = json.loads(told.stdout.splitlines()[-1])
        rows.append(row)
        held, planned, tensors, process = (row[key] for key in ("weights", "planned", "tensors", "process"))
        sizes = [f"{gibibytes(size):>10}" for size in (held, planned, tensors)]
        whole = (held + process) / (held + planned)
        print(f"{name:<14}{''.join(sizes)}{tensors / planned:>8.3f}{gibibytes(process):>10}{whole:>8.3f}", flush=True)
    settings = {"model": asked.model, "size": asked.size if asked.model != "embedded" else 64, "batch": asked.batch}
    with RESULTS.open("a") as file:
        file.write(json.dumps({**settings, "threads": torch.get_num_threads(), "torch": torch.__version__, "probes": rows}) + "\n")


def measured(name: str, kind: str, size: int, batch: int) -> dict[str, Any]:
    """The planned and the measured peaks of one probe's cells, in bytes beyond the weights."""
    model = random_weights(size) if kind == "sd15" else _embedded()
    rig = Rig(model, {"embedded": load_embedder("embedded", LoadOptions(device="cpu"))}, batch)
    probe = small(name, batch)
    steps = plan([probe])
    asked, held = foreseen(_outlined(model), [probe], batch)[name], weights(model)
    expected = planned(asked, torch.device("cpu")) - sum(held.values())
    assert asked.takes.weights == held, (asked.takes.weights, held)
    _forget()
    before = _status("VmRSS")

    def run() -> None:
        records: dict[str, Any] = {}
        for step in steps:
            records[step.key] = step.cell.measure(rig, *(records[key] for key in _inputs(step.cell)))

    tensors = peak(run)
    return {"probe": name, "weights": sum(held.values()), "planned": expected, "tensors": tensors, "process": _status("VmHWM") - before}


def small(name: str, batch: int) -> Probe:
    """Each probe with few steps and one batch of each kind of call."""
    chosen: dict[str, dict[str, Any]] = {
        "drift": {"count": batch, "strengths": (1.0,), "num_inference_steps": (STEPS,), "prompt_sets": ("empty",), "budget": False},
        "consistency": {"count": 1, "repetitions": max(2, batch), "num_inference_steps": STEPS},
        "geometry": {"sets": ("world",), "count": min(2, batch), "directions": 4, "dims": 1},
        "interpolation": {**MIXED, "count": max(4, batch), "draws": max(2, batch)},
        "speciation": {"variants": ("a red star",), "samples": max(2, batch), "num_inference_steps": STEPS, "keep_images": 0},
    }
    return PROBES[name](**chosen[name])


def random_weights(size: int) -> Model:
    """Stable Diffusion 1.5's real classes at their real size, with random weights, at `size` pixels."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from diffprobe.adapters.diffusers import assemble

    blocks = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    widths = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=77)
    with quiet():
        parts = {
            "unet": UNet2DConditionModel(sample_size=size // 8, cross_attention_dim=768, attention_head_dim=8).eval(),
            "vae": AutoencoderKL(down_block_types=blocks[0], up_block_types=blocks[1], sample_size=size, **widths).eval(),
            "text_encoder": CLIPTextModel(text).eval(),
            "tokenizer": CLIPTokenizer.from_pretrained(folder() / "tokenizer"),
            "scheduler": DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False),
        }
        made = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        edits = StableDiffusionImg2ImgPipeline.from_pipe(made, torch_dtype=None)
    return replace(assemble("StableDiffusion", made, edits, torch.device("cpu")), name="sd15", identity={"family": "StableDiffusion"})


def _embedded() -> Model:
    from diffprobe.adapters.load import load

    return load("embedded", device="cpu")


def _outlined(model: Model) -> Model:
    """The same model on the meta device: of a saved one its outline, else its own parts, copied there."""
    from diffprobe.adapters.diffusers import assemble
    from diffprobe.adapters.families import FAMILIES
    from diffprobe.adapters.outline import outline

    if model.name == "embedded":
        return outline("embedded", LoadOptions(device="cpu")).model
    pipes = [model.generator.pipe, model.editor.pipe]  # type: ignore[union-attr]
    meta = {name: _copied(part) if isinstance(part, torch.nn.Module) else part for name, part in pipes[0].components.items()}
    made, edits = (type(pipe)(**meta, requires_safety_checker=False) for pipe in pipes)
    found = assemble("StableDiffusion", made, edits, torch.device("meta"))
    return replace(found, identity=model.identity, condition=lambda prompts: FAMILIES["StableDiffusion"].blank(made, len(prompts)))


def _copied(module: Any) -> Any:
    with torch.device("meta"):
        made = type(module).from_config(module.config) if hasattr(type(module), "from_config") else type(module)(module.config)
    return made.eval()


def _inputs(cell: Any) -> Sequence[str]:
    from diffprobe.probes.base import key

    return [key(one) for one in cell.inputs()]


def _forget() -> None:
    """Begin the process's high-water mark anew."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    """A size of this process in bytes, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
