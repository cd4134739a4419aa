"""`python -m benchmarks.drift_speed`: the drift probe against the loop that one writes in a notebook, and against its own bare work."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from diffprobe import images, rng
from diffprobe.adapters.load import load, rig
from diffprobe.measures import similarity
from diffprobe.model import EditSettings, Memo, Rig
from diffprobe.probes.drift import Drift
from diffprobe.probes.drift.looks import compare, decode, features
from diffprobe.probes.drift.prompts import PROMPT_SETS
from diffprobe.runs.execute import execute, plan
from diffprobe.runs.store import Store

RESULTS = Path(__file__).parent / "results" / "drift_speed.jsonl"
STRENGTHS, STEPS, GUIDANCE, SEED, CHUNK = (0.1, 0.2, 0.3, 0.4), 15, 5.0, 42, 16
PROMPTS = [prompt for prompt in PROMPT_SETS["null"] if prompt is not None]
EMBEDDER = "embedded"

#: The mean squared error of each edit, by image, strength and prompt.
Answers = dict[tuple[str, float, str], float]
Method = Callable[[Rig, Drift], Answers]


def probe(worker: Rig, study: Drift) -> Answers:
    """The drift probe as deployed: plan, executor, store; every record on disk, read back."""
    with tempfile.TemporaryDirectory() as folder, (store := Store(Path(folder) / "run")).writing():
        steps = plan([study])
        execute(steps, store, worker, lambda progress: None)
        rows = store.records("drift", (step.key for step in steps))["Edits"].to_pylist()
    return {(row["image"], row["requested_strength"], row["prompt"]): row["mse"] for row in rows}


def naive(worker: Rig, study: Drift) -> Answers:
    """The notebook: one image at a time, everything done again for each strength and prompt."""
    pipe, codec, look = worker.model.editor.pipe, worker.model.codec, worker.embedders[EMBEDDER]  # type: ignore[union-attr]
    assert codec is not None
    answers: Answers = {}
    for index, source in enumerate(study.sources()):
        original = images.load([source], 64)
        for strength, prompt in product(STRENGTHS, PROMPTS):
            with torch.no_grad():
                latents = pipe(
                    prompt=prompt,
                    image=codec.encode(original),
                    strength=strength,
                    num_inference_steps=STEPS,
                    guidance_scale=GUIDANCE,
                    negative_prompt="",
                    generator=rng.generators([SEED + index]),
                    output_type="latent",
                ).images
                edited = codec.decode(latents).clamp(0, 1)
            mse, *_ = (f(original, edited) for f in (similarity.mse, similarity.psnr, similarity.ssim))
            similarity.cosine_distance(look(original), look(edited))
            answers[f"scene 2024/{index}", strength, prompt] = float(mse)
    return answers


def bare(worker: Rig, study: Drift) -> Answers:
    """What the probe computes and no more: the same batches, edits, decodings, metrics and features; no cells, no files."""
    look, answers = worker.embedders[EMBEDDER], dict[tuple[str, float, str], float]()
    editor, codec = worker.model.editor, worker.model.codec
    assert editor is not None
    assert codec is not None
    sources = study.sources()
    for start in range(0, len(sources), CHUNK):
        seen = images.load(sources[start : start + CHUNK], 64)
        flags: list[str | None] = [None] * len(seen)
        seeds = range(SEED + start, SEED + start + len(seen))
        latents = codec.encode(seen).contiguous()  # as the probe has them from its records; another layout is slower
        rebuilt = decode(worker, latents).clamp(0, 1)
        compare(seen, rebuilt, flags)
        before = features(worker, look, seen)
        similarity.cosine_distance(before, features(worker, look, rebuilt))
        for strength, prompt in product(STRENGTHS, PROMPTS):
            edited = editor.edit(latents, [prompt] * len(seen), seeds, EditSettings(strength, STEPS, GUIDANCE))
            shown = edited.images.clamp(0, 1)
            after, text = features(worker, look, shown), look.embed_text([prompt]).expand_as(before)  # type: ignore[attr-defined]
            for pair in ((before, after), (text, before), (text, after)):
                similarity.cosine_distance(*pair)
            for i, mse in enumerate(compare(seen, shown, flags)["mse"]):
                assert mse is not None
                answers[f"scene 2024/{start + i}", strength, prompt] = mse
    return answers


METHODS: dict[str, Method] = {"probe": probe, "naive": naive, "bare": bare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16, help="how many scenes")
    parser.add_argument("--rounds", type=int, default=3, help="how often each method runs; medians are over rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", action="store_true", help="let the probe write its gallery pictures, which the others do not")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    study = Drift(
        count=given.images, prompt_sets=("null",), strengths=STRENGTHS, budget=False, keep_images=given.images if given.pictures else 0
    )
    worker = rig(load("embedded", device="cpu"), [EMBEDDER])
    for method in METHODS.values():  # warm: code paths, allocator, rendered scenes
        method(_fresh(worker), replace(study, count=2))
    study.sources()
    times, answers = _rounds(worker, study, given.rounds)
    result = {**_summary(times, answers), "images": given.images, "rounds": given.rounds, "pictures": given.pictures, **_machine()}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(result) + "\n")
    _show(result)


def _rounds(worker: Rig, study: Drift, rounds: int) -> tuple[dict[str, list[tuple[float, float]]], dict[str, Answers]]:
    """Wall and process seconds of each method in each round, the order turned by one every time, and what each answered."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    answers: dict[str, Answers] = {}
    names = list(METHODS)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with _clock(times[name]):
                answers[name] = METHODS[name](_fresh(worker), study)
            print(f"round {turn + 1}, {name:<6} {times[name][-1][0]:7.2f} s wall, {times[name][-1][1]:7.2f} s of processor", flush=True)
    return times, answers


def _summary(times: dict[str, list[tuple[float, float]]], answers: dict[str, Answers]) -> dict[str, Any]:
    def ratio(above: str, below: str, clock: int) -> float:
        return median(a[clock] / b[clock] for a, b in zip(times[above], times[below], strict=True))

    found: dict[str, Any] = {"benchmark": "drift_speed", "edits": len(answers["probe"])}
    for other in ("naive", "bare"):
        assert answers[other].keys() == answers["probe"].keys()
        found[f"difference_{other}"] = max(abs(answers[other][key] - value) for key, value in answers["probe"].items())
    for clock, name in enumerate(("wall", "cpu")):
        found |= {f"{method}_{name}_s": round(median(each[clock] for each in parts), 3) for method, parts in times.items()}
        found[f"naive_over_probe_{name}"] = round(ratio("naive", "probe", clock), 3)
        found[f"overhead_{name}"] = round(ratio("probe", "bare", clock) - 1, 4)
    return found


def _show(result: dict[str, Any]) -> None:
    furthest = ", ".join(f"{other} {result[f'difference_{other}']:.1e}" for other in ("naive", "bare"))
    print(f"\n{result['edits']} edits; largest difference in mse from the probe's: {furthest}")
    for clock, told in (("wall", "wall time"), ("cpu", "processor time")):
        print(
            f"{told:<15} naive/probe {result[f'naive_over_probe_{clock}']:.2f} (target 1.5 or more), "
            f"probe/bare - 1 {result[f'overhead_{clock}']:+.1%} (target 3 % or less)"
        )


def _fresh(worker: Rig) -> Rig:
    """The same model and instruments with nothing remembered."""
    return replace(worker, memo=Memo())


@contextmanager
def _clock(into: list[tuple[float, float]]) -> Iterator[None]:
    wall, processor = time.perf_counter(), time.process_time()
    yield
    into.append((time.perf_counter() - wall, time.process_time() - processor))


def _machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
