"""What the drift probe concludes, from its records alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from diffprobe.measures.drift import (
    HYPOTHESES,
    Factors,
    Selection,
    StrengthBudget,
    attribute_variance,
    factors,
    select_law,
    strength_budget,
)
from diffprobe.measures.stats import Estimate, holm, paired_difference
from diffprobe.measures.stats.intervals import Interval, bootstrap, mean_interval
from diffprobe.probes.base import Card, Comparable, Findings, Records, estimated
from diffprobe.probes.drift import compared, verdicts
from diffprobe.probes.drift.gallery import exhibits
from diffprobe.probes.drift.pictures import charts
from diffprobe.probes.drift.slices import LOOKS, Array, Asked, Slice, Summary, slices

_MANY = 2000  # images beyond which Student's interval is as good as the bootstrap's, and a thousand times cheaper
_UNTRIED = "the editor does not say at which noise level a strength starts"
_UNCHANGED = "every image came back unchanged, at an infinite ratio"
UNITS = {"mse": "", "psnr": "dB", "ssim": "", "relative_mse": "", "gradient_similarity": ""}


def summarise(asked: Asked, records: Records) -> Findings:
    """Everything that the report shows of the drift; what is not measured yet is left out, what does not count is counted."""
    if "Edits" not in records or "Originals" not in records:
        return Findings((), verdicts=("Nothing is measured yet.",))
    edits, originals = _frame(records["Edits"]), _frame(records["Originals"])
    parts, metrics = tuple(slices(asked, edits)), _metrics(edits)
    main = parts[0]
    selection = _selected(main, "mse", asked.level)
    selection = selection._replace(reason=_feasible(main, selection.reason))
    summary = Summary(
        asked,
        parts,
        originals,
        metrics,
        tuple(_means(parts, metrics, asked.level)),
        selection,
        _budget(main, originals, records),
        _allowed(main, asked),
    )
    estimates = (
        *summary.means,
        *_codec(originals, metrics, asked.level),
        *_domains(main, asked.level),
        *_laws(parts, metrics, selection, asked.level),
        *_differences(parts, asked.level),
        *_shares(summary),
        *_attributed(summary),
        *_counted(edits, originals),
    )
    cards = tuple(_cards(summary))
    estimates = (*(card.estimate for card in cards), *estimates)
    return Findings(
        estimates,
        tuple(verdicts.sentences(summary, estimates)),
        cards,
        tuple(charts(summary, estimates)),
        tuple(exhibits(main.rows, records)),
    )


def comparables(asked: Asked, records: Records) -> tuple[Comparable, ...]:
    """The drift as values an image; nothing where nothing is measured."""
    if "Edits" not in records or "Originals" not in records:
        return ()
    edits = _frame(records["Edits"])
    found = compared.comparables(tuple(slices(asked, edits)), _metrics(edits), records)
    return tuple(one for one in found if one.values)


def _metrics(edits: pd.DataFrame) -> tuple[str, ...]:
    return (*UNITS, *(name for name in map(str, edits) if name.startswith((*LOOKS, "text_after:", "text_before:"))))


def _frame(table: pa.Table) -> pd.DataFrame:
    """A record as a frame; a column without a single value is one of numbers."""
    empty = [field.name for field in table.schema if pa.types.is_null(field.type)]
    frame: pd.DataFrame = table.to_pandas()
    return frame.astype(dict.fromkeys(empty, np.float64))


def mean(quantity: str, column: npt.ArrayLike, level: float, facets: dict[str, str | float | int], unit: str = "") -> Estimate:
    """The mean over images with its interval; missing values are left out."""
    values = np.asarray(column, np.float64)
    values = values[np.isfinite(values)]
    if len(values) > _MANY:
        found = mean_interval(values, level=level)
    else:
        found = bootstrap(values, level=level) if len(values) else Interval(np.nan, np.nan, np.nan)
    return estimated("drift", quantity, found, len(values), facets, unit)


def _means(slices: Sequence[Slice], metrics: Sequence[str], level: float) -> Iterator[Estimate]:
    for part in slices:
        for metric in metrics:
            for strength, column in zip(part.levels.index, part.matrix(metric).T, strict=True):
                found = mean(metric, column, level, part.facets(strength), UNITS.get(metric, ""))
                yield _explained(found, compared.changed(part, strength)[1]) if metric == "psnr" else found


def _explained(psnr: Estimate, counted: int) -> Estimate:
    """A likeness; where it has no value and yet so many images count, the reason is that none changed."""
    return replace(psnr, reason=_UNCHANGED) if psnr.value is None and counted else psnr


def _codec(originals: pd.DataFrame, metrics: Sequence[str], level: float) -> Iterator[Estimate]:
    """What the autoencoder alone does, by the same metrics."""
    for metric in metrics:
        if metric in originals:
            found = mean(f"codec_{metric}", originals[metric], level, {}, UNITS.get(metric, ""))
            yield _explained(found, int(originals["mse"].notna().sum())) if metric == "psnr" else found


def _domains(main: Slice, level: float) -> Iterator[Estimate]:
    for name, rows in main.rows.groupby("domain"):
        part = Slice(main.setting, rows, main.levels)
        for strength, column in zip(part.levels.index, part.matrix("mse").T, strict=True):
            yield mean("mse", column, level, {**part.facets(strength), "domain": str(name)})


def _laws(slices: Sequence[Slice], metrics: Sequence[str], selection: Selection, level: float) -> Iterator[Estimate]:
    """Every hypothesis fitted to the mean squared error and to each instrument's distance, in every setting."""
    for part in slices:
        for metric in ("mse", *(name for name in metrics if name.startswith(LOOKS))):
            found = selection if part is slices[0] and metric == "mse" else _selected(part, metric, level)
            for name, support in found.support.items():
                facets = {**part.setting, "metric": metric, "law": name}
                for quantity in ("k", "c", "r2"):
                    yield estimated("drift", f"kernel_{quantity}", getattr(support, quantity), found.n, facets)
                yield estimated("drift", "kernel_share", Interval(support.share, np.nan, np.nan), found.n, facets)
            for name in (name for name in HYPOTHESES if name not in part.laws):
                facets = {**part.setting, "metric": metric, "law": name}
                for quantity in ("k", "c", "r2", "share"):
                    yield Estimate("drift", f"kernel_{quantity}", None, None, None, found.n, "", facets, _UNTRIED)


def _selected(part: Slice, metric: str, level: float) -> Selection:
    return select_law(*part.kernel(metric), hypotheses=part.laws, level=level)


def _differences(slices: Sequence[Slice], level: float) -> Iterator[Estimate]:
    """Each other setting against the main one, paired by image; p values are Holm's over the family of all of them."""
    main, found = slices[0], []
    for part in slices[1:]:
        both = [
            main.rows.groupby(["image", "requested_strength"])["mse"].mean(),
            part.rows.groupby(["image", "requested_strength"])["mse"].mean(),
        ]
        joined = pd.concat(both, axis=1, keys=["main", "other"]).dropna()
        for strength, rows in joined.groupby(level="requested_strength"):
            if len(rows) >= 2:
                found.append((part.facets(float(strength)), paired_difference(rows["other"], rows["main"], level=level), len(rows)))
    adjusted = holm([difference.permutation_p for _, difference, _ in found])
    for (facets, difference, n), p in zip(found, adjusted, strict=True):
        against = {f"than_{name}": value for name, value in main.setting.items() if facets[name] != value}
        yield estimated("drift", "mse_difference", difference.mean, n, {**facets, **against, "p_holm": float(p)})


def _budget(main: Slice, originals: pd.DataFrame, records: Records) -> pd.DataFrame:
    """One row an image and strength of the main slice: the parts of its drift, and the factors of the linear part.

    What an inversion moves is set against no noise, so that of an inverting slice only the parts and the alignment are there.
    """
    if "total" not in main.rows or not (main.inverts or "DecoderNoise" in records):
        return pd.DataFrame()
    rows = main.rows.merge(originals[["image", "gain", "shape"]].drop_duplicates("image"), on="image")
    parts = ["total", "floor", "move", "cross", "linear"]
    if not main.inverts:
        at = ["image", "seed", "strength", "num_inference_steps"]
        noise = records["DecoderNoise"].to_pandas()
        rows = rows.merge(noise[[*at, "decoder_only"]].drop_duplicates(at), on=at, how="left")
        parts = [*parts, "decoder_only"]
    if rows.empty:
        return rows
    dims = int(np.prod(rows["shape"].iloc[0]))
    found = factors(rows["linear"], rows["energy"], rows["sigma"] ** 2, rows["gain"], dims)
    rows = rows.assign(**dict(zip(Factors._fields, found, strict=True)))
    return rows.groupby(["image", "requested_strength"])[[*parts, *Factors._fields]].mean().reset_index()


def _shares(summary: Summary) -> Iterator[Estimate]:
    """The parts of the drift as means, the floor's share of it as a ratio of means, and the factors as geometric means."""
    main, level = summary.main, summary.asked.level
    if summary.budget.empty:
        return
    for strength, rows in summary.budget.groupby("requested_strength"):
        facets = main.facets(float(strength))
        for part in ("total", "floor", "move", "cross", "linear", "decoder_only"):
            if part in rows:
                yield mean(f"budget_{part}", rows[part], level, facets)
        pairs = rows[["floor", "total"]].dropna().to_numpy()
        if len(pairs):
            yield estimated("drift", "floor_share", bootstrap(pairs, _ratio_of_means, level=level), len(pairs), facets)
        for factor in (name for name in summary.factors if name != "decoder"):
            logs = np.log(rows[factor][rows[factor] > 0])
            found = bootstrap(logs, level=level) if len(logs) > 1 else Interval(np.nan, np.nan, np.nan)
            yield estimated("drift", factor, Interval(*(float(np.exp(part)) for part in found)), len(logs), facets)


def _attributed(summary: Summary) -> Iterator[Estimate]:
    """How much of the variance of the linear drift's logarithm, over images and levels, each of its factors accounts for."""
    if summary.budget.empty or len(summary.factors) < 2:
        return
    logs = summary.budget.set_index(["image", "requested_strength"])[list(Factors._fields)]
    logs = np.log(logs.where(logs > 0)).unstack().dropna()
    if len(logs) < 2 or len(summary.main.levels) < 2:
        return
    units = logs.to_numpy().reshape(len(logs), len(Factors._fields), -1).swapaxes(1, 2)
    for index, factor in enumerate(Factors._fields):
        share = bootstrap(units, partial(_share, index=index), replicates=500, level=summary.asked.level)
        yield estimated("drift", "variance_share", share, len(units), {**summary.main.setting, "factor": factor})


def _share(values: Array, /, *, axis: int, index: int) -> Array:
    """The Shapley share of term `index` of values [R, images, levels, terms]."""
    return np.array([attribute_variance(draw.reshape(-1, draw.shape[-1]))[index] for draw in values])


def _ratio_of_means(values: Array, /, *, axis: int) -> Array:
    return np.asarray(values[..., 0].mean(axis) / values[..., 1].mean(axis))


def _allowed(main: Slice, asked: Asked) -> StrengthBudget | None:
    """The strength budget; None where some level has fewer than two samples."""
    matrix = main.matrix("mse")
    if not (np.isfinite(matrix).sum(0) >= 2).all():
        return None
    found = strength_budget(main.levels.index, matrix, asked.tolerance, level=asked.level)
    return found._replace(reason=_feasible(main, found.reason))


def _feasible(main: Slice, reason: str | None) -> str | None:
    """A reason without advice that its editor cannot follow.

    Steps tell nothing apart where no level is told. Strength 1 alone is what an editor is asked that ignores strength: it has no others.
    """
    if reason is None or main.told:
        return reason
    alone = list(main.levels.index) == [1.0]
    return reason.partition(": measure ")[0] if alone else reason.removesuffix(", or with more steps")


def _counted(edits: pd.DataFrame, originals: pd.DataFrame) -> Iterator[Estimate]:
    """How many samples do not count, and why."""
    for name, table in (("edits", edits), ("originals", originals)):
        yield Estimate("drift", "samples", float(len(table)), None, None, len(table), "", {"of": name})
        for flag, number in table["flag"].value_counts().items():
            yield Estimate("drift", "flagged", float(number), None, None, len(table), "", {"of": name, "flag": str(flag)})


def _cards(summary: Summary) -> Iterator[Card]:
    """The headline numbers: estimates without facets, which a gate can name."""
    main, asked = summary.main, summary.asked
    top = float(main.levels.index[-1])
    told = f"{main.setting['prompt_set']} prompts, strength {top:g}; images in [0, 1]"
    yield Card("mean squared change", mean("mse", main.matrix("mse")[:, -1], asked.level, {}), told)
    likeness = _explained(mean("psnr", main.matrix("psnr")[:, -1], asked.level, {}, "dB"), compared.changed(main, top)[1])
    yield Card("likeness to the original", likeness, told if likeness.value is None else f"{told}{verdicts.over(main, top)}")
    support = summary.selection.support.get("strength^2")
    if support is not None:
        found = estimated("drift", "k", support.k, summary.selection.n, {})
        fits = "the error is the same at every strength" if np.isnan(support.fit.r2) else f"R² {support.fit.r2:.3f}"
        yield Card("drift kernel k", found, f"slope of the mean squared error on strength²; {fits}")
    if summary.selection.winner is not None:
        name = summary.selection.winner
        share = estimated("drift", "law_share", Interval(summary.selection.support[name].share, np.nan, np.nan), summary.selection.n, {})
        yield Card(f"best law: {name}", share, f"share of resamples in which {HYPOTHESES[name].formula} predicts best")
    shares = [e for e in _shares(summary) if e.quantity == "floor_share" and e.facets["strength"] == top]
    for e in shares:
        yield Card(
            "the codec's share",
            Estimate("drift", "codec_share", e.value, e.lo, e.hi, e.n, "", {}, e.reason),
            "of the squared error at that strength",
        )
    if summary.allowed is not None:
        value, reason = summary.allowed.value, summary.allowed.reason
        budget = Estimate("drift", "strength_budget", value, None, None, len(main.matrix("mse")), "", {}, reason)
        yield Card(
            "strength budget",
            budget,
            f"largest strength whose mean squared change stays within {asked.tolerance:g}, at {asked.level:.0%} confidence",
        )
