"""Planning and resuming a large study: 10,000 image files x 3 prompts x 4 strengths. Run: python -m benchmarks.planning

Prints the seconds that the plan takes, and those that it takes to find what remains of a half-measured run. Below the plan lies
a floor: reading and hashing every file once, without which a changed image would pass for the one that was measured.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from diffprobe import worlds
from diffprobe.images import find
from diffprobe.manifest import digest
from diffprobe.probes.drift import Drift
from diffprobe.runs.execute import Step, plan, remaining
from diffprobe.runs.store import Store

TARGET = 10.0  # seconds for each of the two
STRENGTHS = (0.1, 0.2, 0.3, 0.4)
DOMAINS = ("animals", "buildings", "food", "people")


def main() -> None:
    """Write the images, plan, fake half of the records, ask what remains; exit code 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    count = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        images, store = Path(folder, "images"), Store(Path(folder, "run"))
        write_images(images, count)
        print(f"{count:,} images x 3 prompts x {len(STRENGTHS)} strengths = {count * 3 * len(STRENGTHS):,} comparisons")
        with timed("floor: read and hash every file once"):
            for path in images.glob("*/*.png"):
                digest(path)
        with timed("read the headers too (images.find)"):
            find(images)
        with timed(f"plan (target {TARGET:g} s)") as planning:
            steps = plan([Drift(images=str(images), strengths=STRENGTHS, prompt_sets=("null",), same_seed=True)])
        measure_half(steps, store)
        with timed(f"what remains (target {TARGET:g} s)") as resuming:
            todo = remaining(steps, store)
        print(f"{len(todo):,} of {len(steps):,} cells remain")
    raise SystemExit(max(planning[0], resuming[0]) > TARGET)


def write_images(folder: Path, count: int) -> None:
    """Real PNG files of rendered scenes: 100 pictures again and again, each file with bytes of its own."""
    scenes = [Image.fromarray(scene.image) for scene in worlds.scenes(100, seed=0)]
    for domain in DOMAINS:
        (folder / domain).mkdir(parents=True)
    for index in range(count):
        content = io.BytesIO()
        scenes[index % len(scenes)].save(content, "PNG", compress_level=1)
        (folder / DOMAINS[index % len(DOMAINS)] / f"{index:06d}.png").write_bytes(content.getvalue() + index.to_bytes(4, "little"))


def measure_half(steps: Sequence[Step], store: Store) -> None:
    """Every second record, as an empty file: only names count for what remains."""
    for step in steps[::2]:
        target = store.path / "cells" / step.probe / f"{step.key}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()


@contextmanager
def timed(what: str) -> Iterator[list[float]]:
    """Print how long the block took; the seconds are in the list afterwards."""
    taken: list[float] = []
    started = time.perf_counter()
    yield taken
    taken.append(time.perf_counter() - started)
    print(f"{taken[0]:8.2f} s  {what}")


if __name__ == "__main__":
    main()
