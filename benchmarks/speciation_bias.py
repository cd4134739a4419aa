"""`python -m benchmarks.speciation_bias`: the errors of the speciation estimator, term by term, in worlds whose entropy is known.

Three parts, each a table and lines in results/speciation_bias.jsonl, under 6 minutes in all on one core:
`budget`, what true priors, the proxy for the complement and the path posterior each change for one class of 200; `steps`, how the
estimate converges with steps, and what a run foretells of it; `samples`, how many samples labels and posteriors need. The first part
and the theory of Gaussian classes are also drawn, to docs/speciation-bias.png and docs/speciation-theory.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from benchmarks import speciation_pictures
from diffprobe import rng
from diffprobe.adapters.exact import exact_world
from diffprobe.adapters.mixture_entropy import Partition, mean_se, mixture_entropy, partition, posterior_entropy, sides_at
from diffprobe.adapters.mixture_paths import walk
from diffprobe.adapters.mixtures import GaussianMixture, anisotropic, isotropic
from diffprobe.measures.speciation.entropy import class_entropy, immse_entropy, log_side_posterior, mmse_rate
from diffprobe.measures.speciation.gaussian import speciation_time
from diffprobe.measures.speciation.likelihood import log_likelihood_steps, squared_gaps
from diffprobe.measures.speciation.steps import discretisation_bias, mean_gap, steps_needed
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving, transition
from diffprobe.sampling import step

Array = NDArray[np.float64]
Line = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "speciation_bias.jsonl"
DOCS = Path(__file__).parent.parent / "docs"
CLASSES, DIMENSIONS, STEPS = 200, (64, 256, 1024), 100
COUNTS = (8, 16, 32, 64, 128, 256)
VE = VarianceExploding()


class Curve(NamedTuple):
    """One run of the sampler: levels, the estimate and its error, its distance from the exact entropy of the same states, mean gaps,
    and the I-MMSE form.
    """

    sigma: Array
    entropy: Array
    error: Array
    same: Array
    gaps: Array
    immse: Array


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speciation_bias", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="which parts; all by default")
    parser.add_argument("--seeds", type=int, default=1000, help="samples a side of the budget; the steps take eight times as many in all")
    parser.add_argument("--threads", type=int, default=1, help="of torch; numpy's follow OPENBLAS_NUM_THREADS")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.only:
        started = time.perf_counter()
        lines = list(PARTS[name](given.seeds))
        machine = {
            "seconds": round(time.perf_counter() - started, 1),
            "load": round(os.getloadavg()[0], 1),
            "python": platform.python_version(),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.writelines(json.dumps({"benchmark": f"speciation_bias {name}"} | line | machine) + "\n" for line in lines)
        print(f"{name}: {machine['seconds']} s\n")


def budget(seeds: int) -> Iterator[Line]:
    """One class of 200 against the others: H_pi - H^(b,u,p) = priors + proxy + posterior, over the levels, dimensions and paths."""
    print(f"one class of {CLASSES}, {STEPS} steps, {seeds} samples a side; nats, at the half level of the balanced entropy")
    print("dim  path  sigma   true/prior  balanced/ln2    priors     proxy   posterior (same states)  posterior (own)")
    lines = []
    for dimension in DIMENSIONS:
        world = isotropic(dimension, CLASSES, separation=(2 * dimension) ** 0.5, variance=1.0)
        scale = speciation_time(2.0 * dimension, 1.0)
        asked = {"true": _asked(world, balanced=False), "balanced": _asked(world), "proxy": partition(world, [[0], list(range(CLASSES))])}
        levels = np.geomspace(8, 0.01, 40) * scale
        exact = {name: mean_se(posterior_entropy(world, VE, levels.tolist(), part, range(seeds))) for name, part in asked.items()}
        for kind, path in _paths(scale).items():
            line = {"dimension": dimension, "path": kind, "classes": CLASSES, "steps": STEPS, "seeds": seeds, "sigma_s": scale}
            line |= _terms(world, path, asked, (levels, exact), seeds)
            lines.append(line)
            _tell(line)
            yield line
    speciation_pictures.draw_budget(lines, DOCS / "speciation-bias.png")
    speciation_pictures.draw_theory(DOCS / "speciation-theory.png")


def _asked(world: GaussianMixture, balanced: bool = True) -> Partition:
    return partition(world, [[0], list(range(1, CLASSES))], balanced=balanced)


def _paths(scale: float) -> dict[str, NoisePath]:
    """Paths that begin in noise: DDPM's own betas (Stable Diffusion's begin too early for this), EDM's grid from 12 sigma_S on."""
    linear = VariancePreserving.from_betas(np.linspace(1e-4, 0.02, 1000).tolist(), end=-1.0)
    return {"vp": linear, "ve": VarianceExploding(0.01 * scale, 12 * scale), "flow": RectifiedFlow()}


def _terms(
    world: GaussianMixture, path: NoisePath, asked: dict[str, Partition], known: tuple[Array, dict[str, tuple[Array, Array]]], seeds: int
) -> Line:
    """The curves of one path at the exact levels, and the posterior's term both ways: against the same states, and against the truth."""
    levels, exact = known
    proxy, own = asked["proxy"], [index % 2 for index in range(2 * seeds)]
    found = []
    for stage in walk(world, path, path.levels(STEPS), proxy, own, range(2 * seeds)):
        online = class_entropy(log_side_posterior(stage.log_likelihoods, ((0,), (1,)), ((0.5,), (0.5,))))
        at_states = class_entropy(stage.log_posterior)
        found.append((stage.sigma, online.mean(), mean_se(online)[1], (at_states - online).mean(), mean_se(at_states - online)[1]))
    sigma, online, error, same, same_error = np.array(found)[::-1].T
    inside = np.isfinite(sigma)
    place = np.log(levels)

    def at(values: Array) -> Array:
        return np.asarray(np.interp(place, np.log(sigma[inside]), values[inside], left=np.nan, right=np.nan))

    curves = {name: values[0] for name, values in exact.items()} | {"online": at(online)}
    terms = {"priors_term": curves["true"] - curves["balanced"], "proxy_term": curves["balanced"] - curves["proxy"], "posterior": at(same)}
    errors = {"online_error": at(error), "posterior_error": at(same_error), "posterior_own": curves["proxy"] - curves["online"]}
    listed = {name: [None if np.isnan(v) else round(float(v), 6) for v in values] for name, values in (curves | terms | errors).items()}
    return (
        {"sigma": levels.round(5).tolist(), "prior_true": asked["true"].entropy}
        | listed
        | {f"{n}_se": e.round(6).tolist() for n, (_, e) in exact.items()}
    )


def _tell(line: Line) -> None:
    half = int(np.argmin(np.abs(np.array(line["balanced"]) - np.log(2) / 2)))

    def number(name: str) -> float:
        value = line[name][half]
        return float("nan") if value is None else float(value)

    print(
        f"{line['dimension']:>4} {line['path']:>5} {line['sigma'][half]:6.2f} {number('true') / line['prior_true']:11.3f}"
        f" {number('balanced') / np.log(2):13.3f} {number('priors_term'):10.4f} {number('proxy_term'):9.4f} {number('posterior'):13.4f} ±"
        f" {number('posterior_error'):.4f} {number('posterior_own'):13.4f} ± {number('online_error'):.4f}",
        flush=True,
    )


def steps(seeds: int) -> Iterator[Line]:
    """How far the estimate is from the truth at its worst level, by the number of steps, and what it foretells of that itself."""
    print("largest error over the levels, nats, below the truth (steps) and above it (start): measured, foretold")
    print("world    path  steps     below  foretold     above  foretold same states  I-MMSE  foretold off  steps for 0.02")
    for name, (world, asked) in _worlds().items():
        levels = np.geomspace(200, 0.002, 80)
        exact = posterior_entropy(world, VE, levels.tolist(), asked, range(8 * seeds)).mean(0)
        truth = CubicSpline(np.log(levels[::-1]), exact[::-1])
        paths: dict[str, NoisePath] = {"vp": VariancePreserving.scaled_linear(), "ve": VE, "flow": RectifiedFlow()}
        for kind, path in paths.items():
            for count in COUNTS:
                curve = _sample(world, path, count, asked, 8 * seeds)
                yield _compared(
                    name, kind, curve, np.where(np.isfinite(curve.sigma), truth(np.log(np.minimum(curve.sigma, 200))), asked.entropy)
                )


def _worlds() -> dict[str, tuple[GaussianMixture, Partition]]:
    def named(name: str, sides: Sequence[Sequence[int]]) -> tuple[GaussianMixture, Partition]:
        world = exact_world(name).mixture
        return world, partition(world, sides)

    wide, shapes = isotropic(16, 4, separation=4.0, variance=1.0), anisotropic(64, 2, separation=0.0, variances=(0.1, 2.0))
    return {
        "gmm": named("gmm", [[0, 1], [2, 3]]),
        "shapes": named("anisotropic", [[0, 1], [2, 3]]),
        "groups": named("hierarchical", [[0, 1, 2], [3, 4, 5, 6, 7, 8]]),
        "wide": (wide, partition(wide, [[0, 1], [2, 3]])),
        "one": (wide, partition(wide, [[0], [1, 2, 3]])),
        "spread": (shapes, partition(shapes)),
    }


def _sample(world: GaussianMixture, path: NoisePath, count: int, asked: Partition, samples: int) -> Curve:
    """The estimate as the probe makes it, all samples by one stream: the sampler's own steps, likelihoods of every class."""
    each, times = partition(world), path.levels(count)
    shares = [
        k
        for side, priors in zip(asked.sides, asked.priors, strict=True)
        for k, p in zip(side, priors, strict=True)
        for _ in range(round(samples * p))
    ]
    own, rows = torch.tensor(shares), torch.arange(len(shares))
    draw = rng.stream("benchmark.steps", count)
    x = (path.alpha(times[0]).square() + path.sigma(times[0]).square()).sqrt() * torch.from_numpy(
        draw.standard_normal((len(own), world.means.shape[1]))
    )
    logs, found = torch.zeros(len(own), world.classes, dtype=torch.float64), []
    for index, t in enumerate(times):
        known = sides_at(world, path, x.numpy(), t, each)
        x0 = torch.from_numpy(known.x0)
        gaps = squared_gaps(x0).numpy()
        entropy = class_entropy(log_side_posterior(logs.numpy(), asked.sides, asked.priors))
        rate = mmse_rate(logs.numpy(), gaps, asked.sides, asked.priors)
        mean, error = mean_se(entropy)
        exact = class_entropy(log_side_posterior(known.log_posterior - np.log(each.totals), asked.sides, asked.priors))
        gap = mean_gap(gaps, asked.sides, asked.priors).mean()
        found.append((float(path.ratio(t)), mean, error, (entropy - exact).mean(), gap, rate.mean()))
        if index + 1 < len(times):
            after = step(
                path, (times[index + 1], t), x, x0[own, rows], eta=1.0, noise=torch.from_numpy(draw.standard_normal(tuple(x.shape)))
            )
            logs += log_likelihood_steps(after, x, x0, transition(path, times[index + 1], t))
            x = after
    sigma, estimate, errors, same, mean_gaps, rates = np.array(found).T
    return Curve(sigma, estimate, errors, same, mean_gaps, immse_entropy(sigma, rates, asked.entropy))


def _compared(name: str, kind: str, curve: Curve, truth: Array) -> Line:
    bias, foretold = curve.entropy - truth, discretisation_bias(curve.sigma, curve.gaps, curve.entropy)
    low, high = int(np.argmin(bias)), int(np.argmax(bias))
    line: Line = {"world": name, "path": kind, "steps": len(curve.sigma)}
    line |= {"below": bias[low], "below_foretold": foretold.min(), "above": bias[high], "above_foretold": foretold.max()}
    line |= {
        "same_states": curve.same[int(np.abs(curve.same).argmax())],
        "mean": bias.mean(),
        "immse": np.abs(curve.immse - truth).max(),
        "foretold_off": np.abs(foretold - bias).max(),
        "se": curve.error.max(),
    }
    line = {key: round(float(value), 5) if isinstance(value, float) else value for key, value in line.items()}
    line["needed"] = steps_needed(curve.sigma, curve.gaps, curve.entropy)
    parts = [f"{line[key]:9.4f}" for key in ("below", "below_foretold", "above", "above_foretold", "same_states")]
    print(
        f"{name:<8} {kind:<5} {line['steps']:>5}",
        *parts,
        f"{line['immse']:9.3f} {line['foretold_off']:9.4f} {line['needed']:>9}",
        flush=True,
    )
    return line


def samples(seeds: int) -> Iterator[Line]:
    """The standard deviation of one sample's contribution by labels and by posteriors, and what it takes to know H to 0.01 nats."""
    print("control parameter, entropy, deviation of a sample by label and posterior, samples for a standard error of 0.01")
    world = isotropic(16, 2, separation=8.0, variance=0.1)
    for gamma in (1.0, 4.0, 10.0):
        found = mixture_entropy(world, VE, [speciation_time(64.0, 0.1, gamma=gamma)], partition(world), range(10 * seeds))
        label, posterior = (float(part.std()) * 2**0.5 for part in (found.label, found.entropy))
        line = {"gamma": gamma, "entropy": float(found.entropy.mean()), "label_sd": label, "posterior_sd": posterior}
        line = {key: round(value, 4) for key, value in line.items()}
        line |= {"label_samples": round((label / 0.01) ** 2), "posterior_samples": round((posterior / 0.01) ** 2)}
        print(
            f"{gamma:5.1f} {line['entropy']:8.4f} {label:8.3f} {posterior:8.3f} {line['label_samples']:8d} {line['posterior_samples']:8d}",
            flush=True,
        )
        yield line


PARTS = {"budget": budget, "steps": steps, "samples": samples}

if __name__ == "__main__":
    main()
