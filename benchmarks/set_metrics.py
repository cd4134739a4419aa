"""`python -m benchmarks.set_metrics`: the set metrics against the packages and the loops that one would use otherwise."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results" / "set_metrics.jsonl"
PROMPTS, REPETITIONS = 1000, 20
#: Seconds from which a call is not repeated.
LONG = 30.0
Answer = Callable[..., Sequence[float]]


class Case(NamedTuple):
    """A metric, ours first. Every way answers the same numbers; targets are peer over ours, in time and in peak memory."""

    data: Callable[[int], tuple[Any, ...]]
    ways: dict[str, Answer]
    target: float  # against the first peer; the others are shown
    apart: float  # relative difference allowed
    memory: float = 0.0


class Run(NamedTuple):
    """What a way took in a process of its own: the call alone, after data and a small call; memory is of the whole process."""

    wall: float
    cpu: float
    peak_mb: float
    answer: list[float]


def _spectrum(rows: int, dim: int, dtype: str, shift: float = 0.0) -> Any:
    """A set with variances that fall as 1/i, like an embedder's, in random directions."""
    import numpy as np

    draws = np.random.Generator(np.random.Philox(key=int(1e6 * shift) + dim))
    basis = np.linalg.qr(draws.standard_normal((dim, dim), dtype=np.float32))[0]
    basis /= np.sqrt(np.arange(1, dim + 1, dtype=np.float32))[:, None]
    found = draws.standard_normal((rows, dim), dtype=np.float32) @ basis
    found += shift
    return found.astype(dtype)


def _sets(rows: int, dim: int, dtype: str) -> tuple[Any, Any]:
    return _spectrum(rows, dim, dtype), _spectrum(rows, dim, dtype, 0.02)


def _frechet(x: Any, y: Any) -> list[float]:
    from diffprobe.measures.sets import frechet_distance

    return [frechet_distance(x, y)]


def _frechet_sqrtm(x: Any, y: Any) -> list[float]:
    """As the usual packages have it: means, covariances, the root of their product."""
    import numpy as np
    from scipy.linalg import sqrtm

    a, b, gap = np.cov(x, rowvar=False), np.cov(y, rowvar=False), x.mean(0) - y.mean(0)
    return [float(gap @ gap + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b).real))]


def _vendi(x: Any) -> list[float]:
    from diffprobe.measures.sets import vendi_score

    return [float(vendi_score(x))]


def _vendi_package(x: Any) -> list[float]:
    from vendi_score import vendi

    return [float(vendi.score_X(x))]


def _vendi_package_dual(x: Any) -> list[float]:
    from vendi_score import vendi

    return [float(vendi.score_dual(x))]


def _neighbours(x: Any, y: Any) -> list[float]:
    from diffprobe.measures.sets import neighbour_scores

    found = neighbour_scores(x, y, k=3, k_density=3)
    return [*found.precision_recall[:2], *found.density_coverage[:2]]


def _prdc(x: Any, y: Any) -> list[float]:
    from prdc import compute_prdc

    found = compute_prdc(real_features=x, fake_features=y, nearest_k=3)
    return [float(found[key]) for key in ("precision", "recall", "density", "coverage")]


def _consistency(x: Any) -> list[float]:
    import torch

    from diffprobe.measures.similarity import semantic_consistency

    return list(map(float, semantic_consistency(torch.from_numpy(x))))


def _consistency_loop(x: Any) -> list[float]:
    """A notebook's: every pair by torch's own cosine."""
    import torch
    from torch.nn.functional import cosine_similarity

    found = []
    for images in torch.from_numpy(x):
        pairs = list(itertools.combinations(images, 2))
        found.append(100 * sum(float(cosine_similarity(a, b, dim=0)) for a, b in pairs) / len(pairs))
    return found


def _consistency_dots(x: Any) -> list[float]:
    """The same with care: lengths taken once, numpy's inner products."""
    import numpy as np

    found = []
    for images in x:
        pairs = list(itertools.combinations(images / np.linalg.norm(images, axis=1, keepdims=True), 2))
        found.append(100 * sum(float(a @ b) for a, b in pairs) / len(pairs))
    return found


CASES = {
    "frechet": Case(lambda n: _sets(n, 2048, "float64"), {"ours": _frechet, "sqrtm": _frechet_sqrtm}, 5, 1e-8),
    "vendi": Case(
        lambda n: (_spectrum(n, 512, "float64"),),
        {"ours": _vendi, "vendi-score": _vendi_package, "vendi-score dual": _vendi_package_dual},
        100,
        1e-6,
    ),
    "neighbours": Case(lambda n: _sets(n, 512, "float32"), {"ours": _neighbours, "prdc": _prdc}, 3, 1e-3, memory=5),
    "consistency": Case(
        lambda n: (_spectrum(n * PROMPTS * REPETITIONS // 10_000, 512, "float32", 0.05).reshape(-1, REPETITIONS, 512),),
        {"ours": _consistency, "pairwise loop": _consistency_loop, "loop of inner products": _consistency_dots},
        50,
        1e-5,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.set_metrics", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", type=int, default=10_000, help="rows of a set; a tenth as many prompts of 20 images")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way runs; medians are over rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_measure(CASES[given.one[0]], given.one[1], given.rows)))
        return
    passed = [_compare(name, given) for name in given.only]
    sys.exit(int(not all(passed)))


def _measure(case: Case, way: str, rows: int) -> Run:
    """In a process of its own: data, a small call that loads the code, then the call that counts; the better of two if it is short."""
    answer, times = case.ways[way], list[tuple[float, float]]()
    with contextlib.redirect_stdout(io.StringIO()):
        answer(*(part[:640, ..., :64] for part in case.data(640)))
        data = case.data(rows)
        while len(times) < 2 and (not times or times[0][0] < LONG):
            wall, cpu = time.perf_counter(), time.process_time()
            found = list(answer(*data))
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return Run(*min(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, found)


def _compare(name: str, given: argparse.Namespace) -> bool:
    case, runs = CASES[name], {way: list[Run]() for way in CASES[name].ways}
    ways = list(runs)
    for turn in range(given.rounds):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            runs[way].append(_alone(name, way, given))
            wall, cpu, peak, _ = runs[way][-1]
            print(f"{name}, round {turn + 1}, {way:<23} {wall:8.3f} s wall, {cpu:8.3f} s of processor, {peak:6.0f} MB", flush=True)
    result = _summary(name, case, runs) | {key: getattr(given, key) for key in ("rows", "rounds", "threads")} | _machine()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(result) + "\n")
    peer = ways[1]
    memory = f", memory {result['memory_ratio'][peer]:.1f} (target {case.memory:g})" if case.memory else ""
    print(
        f"{name}: {peer}/ours {result['ratio'][peer]:.2f} in wall time, {result['cpu_ratio'][peer]:.2f} in processor time "
        f"(target {case.target:g}){memory}; furthest apart {max(result['apart'].values()):.1e} (at most {case.apart:g})\n"
    )
    return bool(result["passed"])


def _alone(name: str, way: str, given: argparse.Namespace) -> Run:
    """One way in one process, kept to as many processors as it may have threads (some packages start more of them)."""
    told = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(given.threads))
    command = [sys.executable, "-m", "benchmarks.set_metrics", "--rows", str(given.rows), "--one", name, way]
    allowed = sorted(os.sched_getaffinity(0))[-given.threads :]
    finished = subprocess.run(
        command, env=os.environ | told, preexec_fn=lambda: os.sched_setaffinity(0, allowed), capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise SystemExit(f"{name}, {way}: {finished.stderr.strip().splitlines()[-1]}\nThe peers come with `pip install -e '.[oracles]'`.")
    return Run(*json.loads(finished.stdout))


def _summary(name: str, case: Case, runs: dict[str, list[Run]]) -> dict[str, Any]:
    ours, peers = runs["ours"], {way: parts for way, parts in runs.items() if way != "ours"}

    def ratios(value: Callable[[Run], float]) -> dict[str, float]:
        return {way: round(median(value(a) / value(b) for a, b in zip(parts, ours, strict=True)), 3) for way, parts in peers.items()}

    def furthest(parts: list[Run]) -> float:
        return max(abs(a / b - 1) if b else abs(a) for a, b in zip(parts[0].answer, ours[0].answer, strict=True))

    first = next(iter(peers))
    found: dict[str, Any] = {
        "benchmark": f"set_metrics {name}",
        "ratio": ratios(lambda run: run.wall),
        "cpu_ratio": ratios(lambda run: run.cpu),
        "memory_ratio": ratios(lambda run: run.peak_mb),
        "apart": {way: furthest(parts) for way, parts in peers.items()},
        "target": case.target,
    }
    found["passed"] = (
        found["ratio"][first] >= case.target and found["memory_ratio"][first] >= case.memory and max(found["apart"].values()) <= case.apart
    )
    for way, parts in runs.items():
        middle = [round(median(values), 4) for values in zip(*(run[:3] for run in parts), strict=True)]
        found |= {f"{way} {key}": value for key, value in zip(("wall_s", "cpu_s", "peak_mb"), middle, strict=True)}
    return found


def _machine() -> dict[str, Any]:
    found: dict[str, Any] = {"cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version()}
    for package in ("numpy", "scipy", "torch", "vendi-score", "prdc"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


if __name__ == "__main__":
    main()
