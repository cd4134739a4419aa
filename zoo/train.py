"""`python -m zoo.train MODEL`: seeded, resumable, logged."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from pathlib import Path

import torch

from diffprobe.adapters.weights import write_digests
from zoo.loop import Job, together

SHARED = Path("src/diffprobe/assets/embedded")  # the autoencoder, the CLIP and the base: what all members stand on
MODELS = Path("models/diffprobe_models")


@dataclass(frozen=True)
class Plan:
    """Which module trains a model, how long and in how many one-thread processes on the machine of the README, and where it goes."""

    module: str
    minutes: float
    target: Path = SHARED
    processes: int = 1
    begins: str = ""  # the member whose weights it begins with


PARTS = {"classifier": Plan("classifier", 6), "clip": Plan("clip", 30), "autoencoder": Plan("autoencoder", 32)}
MEMBERS = {
    "embedded": Plan("unet", 30, processes=2),
    "embedded-v": Plan("unet", 14, MODELS / "embedded-v", begins="embedded"),
    "embedded-flow": Plan("unet", 14, MODELS / "embedded-flow", begins="embedded"),
    "embedded-edm": Plan("edm", 10, MODELS / "embedded-edm", begins="embedded-v"),
    "embedded-edit": Plan("edit", 27, MODELS / "embedded-edit", processes=2, begins="embedded"),
    "embedded-pastel": Plan("lora", 5, MODELS / "embedded-pastel", begins="embedded"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m zoo.train", description=__doc__)
    parser.add_argument("model", choices=[*PARTS, *MEMBERS])
    parser.add_argument("--minutes", type=float, help="training time; the schedule follows it")
    parser.add_argument("--go-on", action="store_true", help="begin with the member's weights as they stand in its folder")
    parser.add_argument("--processes", type=int, help="for the members of the family: processes of one thread each")
    parser.add_argument("--batch", type=int, default=64, help="for the members: samples a step and process")
    parser.add_argument("--device", default="cpu", help="for the members: cuda trains in one process, with a larger --batch")
    parser.add_argument("--work", type=Path, default=Path("zoo/work"), help="checkpoints, logs and rendered scenes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    plan = PARTS.get(given.model) or MEMBERS[given.model]
    module, minutes = importlib.import_module(f"zoo.{plan.module}"), given.minutes or plan.minutes
    if given.model in PARTS:
        module.train(minutes, given.work, plan.target)
    else:
        module.prepare(given.work, SHARED)
        job = Job(given.model, minutes, given.work, SHARED, plan.target, given.go_on, given.batch, given.device)
        processes = 1 if given.device.startswith("cuda") else given.processes or plan.processes
        together(processes, given.work, module.train, job)
    if given.model != "classifier":
        write_digests(plan.target)


if __name__ == "__main__":
    main()
