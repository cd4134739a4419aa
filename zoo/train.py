"""`python -m zoo.train MODEL`: seeded, resumable, logged. Models: classifier, autoencoder, clip, unet."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch

MINUTES = {"classifier": 6.0, "autoencoder": 30.0, "clip": 30.0, "unet": 70.0}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m zoo.train", description=__doc__)
    parser.add_argument("model", choices=MINUTES)
    parser.add_argument("--minutes", type=float, help="training time; the schedule follows it")
    parser.add_argument("--work", type=Path, default=Path("zoo/work"), help="checkpoints, logs and rendered scenes")
    parser.add_argument("--target", type=Path, default=Path("src/diffprobe/assets/embedded"), help="where the parts are saved")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    minutes = given.minutes or MINUTES[given.model]
    importlib.import_module(f"zoo.{given.model}").train(minutes, given.work, given.target)


if __name__ == "__main__":
    main()
