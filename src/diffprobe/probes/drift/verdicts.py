"""The drift in sentences: what a reader who reads nothing else should know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffprobe.measures.drift import HYPOTHESES
from diffprobe.measures.stats import Estimate
from diffprobe.probes.drift.compared import changed
from diffprobe.probes.drift.editors import TOLD
from diffprobe.probes.drift.slices import Slice, Summary

_SURE = 0.8  # share of resamples from which a law is called supported
_FLAT = 1.1  # the ratio of the highest level's drift to the lowest's below which no law is worth a name


def sentences(summary: Summary, estimates: Sequence[Estimate]) -> Iterator[str]:
    """One sentence a finding, each with its numbers."""
    top = float(summary.main.levels.index[-1])
    at_top = {e.quantity: e for e in estimates if e.facets.get("strength") == top and summary.main.facets(top) == e.facets}
    yield from _size(summary, at_top, top)
    yield from _parts(at_top, top)
    yield from _law(summary)
    yield from _untold(summary)
    yield from _other_laws(summary, estimates)
    yield from _allowed(summary)
    yield from _settings(summary, estimates, top)
    yield from _uncounted(estimates)


def over(part: Slice, strength: float) -> str:
    """Of which edits a likeness at a strength is the mean, where not of all that count."""
    several, all_ = changed(part, strength)
    return f", over the {several} of {all_} edits that changed anything" if several < all_ else ""


def _size(summary: Summary, at_top: dict[str, Estimate], top: float) -> Iterator[str]:
    mse, psnr = at_top.get("mse"), at_top.get("psnr")
    if mse is None or psnr is None or mse.value is None:
        yield f"At strength {top:g} no edit counts: see the flags below."
        return
    name = summary.main.setting["prompt_set"]
    editor = f"the inversion by {summary.main.setting['editor']}" if summary.main.inverts else "the pipeline"
    asked = f"Told to change nothing ({name} prompts), {editor} at strength {top:g} returns"
    if psnr.value is None:
        yield f"{asked} every image unchanged ({mse.n} images)."
        return
    size = f"{psnr.value:.1f} dB from the original{over(summary.main, top)}"
    yield f"{asked} images at {size} (mean squared error {_told(mse)}, {mse.n} images)."


def _parts(at_top: dict[str, Estimate], top: float) -> Iterator[str]:
    share = at_top.get("floor_share")
    if share is not None and share.value is not None:
        yield f"Of that error, {share.value:.0%} ({_percent(share)}) is the autoencoder's own round trip; the rest is the edit."
    contraction, alignment = at_top.get("contraction"), at_top.get("alignment")
    if alignment is None or alignment.value is None:
        return
    way = "more" if alignment.value > 1 else "less"
    amplified = f"is amplified {max(alignment.value, 1 / alignment.value):.2g} times {way} by the decoder than noise of the same energy."
    if contraction is None:
        yield f"What it moves in the latent at strength {top:g} {amplified}"
    elif contraction.value is not None:
        left = f"{contraction.value:.0%} of the energy of the noise it was given at strength {top:g}"
        yield f"The denoiser leaves {left}, and what it leaves {amplified}"


def _law(summary: Summary) -> Iterator[str]:
    found = summary.selection
    if found.winner is None:
        yield f"No law is selected: {found.reason}."
        return
    best, square = found.support[found.winner], found.support.get("strength^2")
    firmness = "The data support" if best.share >= _SURE else "The data lean towards"
    rest = (
        ""
        if square is None or found.winner == "strength^2"
        else f"; the square of the strength has R² {square.fit.r2:.3f} and wins {square.share:.0%}"
    )
    law = f"{HYPOTHESES[found.winner].formula} ({found.winner}; best in {best.share:.0%} of resamples, R² {best.fit.r2:.3f})"
    yield f"{firmness} the law {law}{rest}."


def _untold(summary: Summary) -> Iterator[str]:
    if not summary.main.told:
        yield (
            "The editor does not say at which noise level a strength starts: laws of the noise and of the steps are not tried, "
            "and the error is not divided into parts."
        )


def _other_laws(summary: Summary, estimates: Sequence[Estimate]) -> Iterator[str]:
    """The law of each other editor, all else being as in the main setting, where its drift grows with the level at all."""
    for part in summary.slices[1:]:
        if part.setting != {**summary.main.setting, "editor": part.setting["editor"]}:
            continue
        known, told = part.setting.items() | {("metric", "mse")}, TOLD[str(part.setting["editor"])]
        means = [e for e in summary.means if e.quantity == "mse" and e.value and part.setting.items() <= e.facets.items()]
        laws = [e for e in estimates if e.quantity == "kernel_share" and e.value is not None and known <= e.facets.items()]
        if len(means) > 1 and (means[-1].value or 0) < _FLAT * (means[0].value or 0):
            yield f"By {told} the drift hardly grows with the level: {_told(means[0])} at the lowest, {_told(means[-1])} at the highest."
        elif laws:
            best = max(laws, key=lambda e: e.value or 0)
            r2 = next(e.value for e in estimates if e.quantity == "kernel_r2" and e.facets == best.facets)
            law = (
                f"{HYPOTHESES[str(best.facets['law'])].formula} ({best.facets['law']}; best in {best.value:.0%} of resamples, R² {r2:.3f})"
            )
            yield f"By {told} the law that predicts best is {law}."


def _allowed(summary: Summary) -> Iterator[str]:
    allowed, tolerance = summary.allowed, summary.asked.tolerance
    if allowed is None:
        return
    if allowed.value is None:
        yield f"No measured strength keeps the mean squared error within {tolerance:g}: {allowed.reason}."
    elif allowed.censored:
        beyond = f"; more than {allowed.value:.2g} may do so too" if allowed.value < 1 else ""
        yield f"Every measured strength keeps the mean squared error within {tolerance:g}{beyond}."
    else:
        yield f"To keep the mean squared error within {tolerance:g}, stay at or below strength {allowed.value:.2g}."


def _settings(summary: Summary, estimates: Sequence[Estimate], top: float) -> Iterator[str]:
    for e in estimates:
        if e.quantity == "mse_difference" and e.facets.get("strength") == top and e.value is not None and e.lo is not None:
            against = {name.removeprefix("than_"): value for name, value in e.facets.items() if name.startswith("than_")}
            told = ", ".join(f"{name.replace('_', ' ')} {e.facets[name]} against {value}" for name, value in against.items())
            if set(against) == {"editor"}:
                told = f"{TOLD[str(e.facets['editor'])]} instead of {TOLD[str(against['editor'])]}, from the same level and image by image"
            p = float(e.facets["p_holm"])
            way = "no clear difference" if p > 0.05 else "more drift" if e.value > 0 else "less drift"
            sizes = " against ".join(f"{mean:.4g}" for mean in _sizes(summary, e))
            yield f"{told[0].upper()}{told[1:]}: {way} at strength {top:g} ({sizes}; difference {_told(e)}, p {p:.2g} after Holm)."


def _sizes(summary: Summary, difference: Estimate) -> list[float]:
    """The mean squared errors of a difference's setting and of the main one."""
    settings = ({name: difference.facets[name] for name in summary.main.setting}, summary.main.setting)
    at = [e for e in summary.means if e.quantity == "mse" and e.facets["strength"] == difference.facets["strength"]]
    return [e.value for setting in settings for e in at if e.value is not None and setting.items() <= e.facets.items()]


def _uncounted(estimates: Sequence[Estimate]) -> Iterator[str]:
    for e in estimates:
        if e.quantity == "flagged" and e.value:
            yield f"{e.value:.0f} of {e.n} {e.facets['of']} do not count: {e.facets['flag']}."


def _told(e: Estimate) -> str:
    return f"{e.value:.4g}" if e.lo is None or e.hi is None else f"{e.value:.4g}, {e.lo:.4g} to {e.hi:.4g}"


def _percent(e: Estimate) -> str:
    return "" if e.lo is None or e.hi is None else f"{e.lo:.0%} to {e.hi:.0%}"
