"""A comparison in words: verdicts, what pairs, and a summary in Markdown that fits a pull request."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest

from diffprobe.measures.stats import Estimate
from diffprobe.report.numbers import Shown, label, number, shown
from diffprobe.runs.comparison.choices import Judged
from diffprobe.runs.comparison.contrast import Against, Row
from diffprobe.runs.comparison.losses import Loss, apart, change

_ROWS = 40  # of a table in Markdown
_LOSSES = 6


def heading(names: Sequence[str]) -> str:
    """The runs after the base, against it."""
    return f"{_listed(names[1:])} against {names[0]}"


def verdicts(rows: Sequence[Row], base: str) -> list[tuple[Row, str]]:
    """A sentence for each headline quantity of each run; it names the quantity where another one is told in the same words."""
    told = [row for row in rows if row.headline]
    same = Counter((row.other, row.probe, row.more) for row in told)
    same += Counter((row.other, row.probe, row.less) for row in told)
    return [(row, _verdict(row, base, same[row.other, row.probe, row.more] > 1)) for row in told]


def _verdict(row: Row, base: str, ambiguous: bool) -> str:
    units = f"n = {row.n:,} {many(row.per, row.n)}"
    match row.outcome:
        case "equal":
            return f"{row.other} and {base} are equal in {row.title} in every {row.per}, {units}."
        case "not compared":
            return f"{row.other} and {base} are not compared in {row.title}: {row.reason}."
        case "higher" | "lower":
            words = row.more if row.outcome == "higher" else row.less
            size = _size(row)
            amount = " ".join(part for part in (size.value, size.unit, size.interval) if part)
            return f"{row.other} {words} {base} by {amount}, {units}{f', in {row.title}' if ambiguous else ''}."
    if row.detectable is None:
        return f"{row.other} and {base} are not distinguishable in {row.title}: {row.reason}."
    least = " ".join(part for part in (number(row.detectable), row.unit) if part)
    told = "the smallest difference that this design could have seen is"
    return f"{row.other} and {base} are not distinguishable in {row.title}: {told} {least} ({units})."


def _size(row: Row) -> Shown:
    """The size of a difference, whichever its sign."""
    estimate = difference(row)
    if row.outcome == "lower":
        value, lo, hi = (None if end is None else -end for end in (estimate.value, estimate.hi, estimate.lo))
        estimate = Estimate(row.probe, row.quantity, value, lo, hi, row.n, row.unit)
    return shown(estimate)


def difference(row: Row) -> Estimate:
    """The difference as an estimate, without the facets."""
    return Estimate(row.probe, row.quantity, row.difference, row.lo, row.hi, row.n, row.unit, {}, row.reason)


def interval(row: Row) -> str:
    """The interval as text, or why there is none to show."""
    return row.reason or "" if row.outcome == "equal" or row.lo is None else shown(difference(row)).interval


def p_value(p: float | None) -> str:
    """A p value to two digits; a dash for none."""
    if p is None:
        return "—"
    return "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.0995 else f"{p:.2f}"


def rates(found: Sequence[Against], base: str) -> list[str]:
    """How many rows pair in each probe of each run, and why others do not."""
    return [_sentence(start, _rate(against, base)) for against, start in zip(found, _whose(found), strict=True)]


def remarks(found: Sequence[Against]) -> list[str]:
    """What is to know of rows that pair and yet differ."""
    return [_sentence(start, note) for against, start in zip(found, _whose(found), strict=True) for note in against.pairing.notes]


def _rate(against: Against, base: str) -> str:
    pairing = against.pairing
    parts = {
        f"only in {base}": pairing.base_only,
        f"only in {against.other}": pairing.other_only,
        "in both, but without a value in one of them": pairing.flagged,
    }
    rows = pairing.common + sum(parts.values())
    if pairing.common == rows:
        return f"All {rows:,} rows pair."
    told = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count)
    return f"{pairing.common:,} of {rows:,} rows pair ({percent(pairing.rate)}): {told}."


def _whose(found: Sequence[Against]) -> list[str]:
    """What tells each pairing from the others: its probe, its run, or both."""
    probes, runs = {against.probe for against in found}, {against.other for against in found}
    return [", ".join([one.probe] * (len(probes) > 1) + [one.other] * (len(runs) > 1)) for one in found]


def _sentence(start: str, text: str) -> str:
    return f"{start}: {text[:1].lower()}{text[1:]}" if start else text


def percent(share: float) -> str:
    """A share in per cent; only all is 100 and only nothing 0."""
    text = f"{100 * share:.0f}"
    if text == "100" and share < 1:
        return "over 99 %"
    return "under 1 %" if text == "0" and share > 0 else f"{text} %"


def opinions(found: Sequence[Judged], base: str) -> Iterator[str]:
    """What people chose, a sentence a quantity."""
    for one in found:
        told = one.agreement
        between = f"between {one.other} and {base}"
        left_out = {"tied votes": told.ties, "equal scores": told.even, "no score": told.unmatched, "no votes": told.unvoted}
        apart = ", ".join(f"{count:,} with {what}" for what, count in left_out.items() if count)
        rest = f" Left out: {apart}." if apart else ""
        if not told.decided:
            yield f"No prompt has both a majority {between} and a higher score in {one.title}.{rest}"
            continue
        value, lo, hi = (100 * end for end in told.agreement)
        share = shown(Estimate("", "", value, lo, hi, told.decided, "%"))
        yield (
            f"The majority of the annotators chose the run with the higher {one.title} in {told.agreed:,} of {told.decided:,} prompts "
            f"{between}: {share.value} % {share.interval}.{rest}{_kappa(one)}"
        )


def _kappa(one: Judged) -> str:
    told = one.agreement
    value, lo, hi = (min(1.0, max(-1.0, end)) if math.isfinite(end) else end for end in told.kappa)
    kappa = shown(Estimate("", "", value, lo, hi, told.decided))
    if kappa.reason:
        return ""
    return f" {told.annotators} annotators agree with each other with a kappa of {kappa.value} {kappa.interval}."


def markdown(names: Sequence[str], rows: Sequence[Row], told: Sequence[str], found: Sequence[Loss], notes: Sequence[str]) -> str:
    """The comparison as GitHub's Markdown: verdicts, what pairs, the differences (after the headline the surest first), the worst units."""
    lines = [f"## {escaped(heading(names))}", "", *(f"- {escaped(sentence)}" for sentence in told), ""]
    lines += [f"{escaped(note)}  " for note in notes]
    if rows:
        chosen = sorted(rows, key=lambda row: (not row.headline, 0 if row.headline else 2 if row.p is None else row.p))
        head = ("quantity", names[0], "other", "difference", "interval", "d_z", "p (Holm)", "n")
        several, varying = len(names) > 2, vary(rows)
        lines += [
            "",
            *table(head if several else (*head[:2], names[1], *head[3:]), [_cells(row, several, varying) for row in chosen[:_ROWS]], 1),
        ]
        if len(chosen) > _ROWS:
            lines += ["", f"{len(chosen) - _ROWS:,} more rows are in comparison.json."]
    worst = _in_turn([loss for loss in found if not loss.improved])
    if worst:
        units = [
            (f"{loss.other}: {loss.name}", loss.title, change(loss.base_value, loss.other_value, loss.unit)) for loss in worst[:_LOSSES]
        ]
        lines += ["", "Worst regressions", "", *table(("unit", "quantity", "change"), units, 3)]
        if len(worst) > _LOSSES:
            lines += ["", f"{len(worst) - _LOSSES:,} more regressions are in comparison.json."]
    return "\n".join(lines).rstrip() + "\n"


def _in_turn(found: Sequence[Loss]) -> list[Loss]:
    """The worst of every quantity of every run, then the second of each, ..., so that none is left out for another's sake."""
    groups: dict[tuple[str, str, str], list[Loss]] = {}
    for loss in found:
        groups.setdefault((loss.other, loss.probe, loss.quantity), []).append(loss)
    return [loss for turn in zip_longest(*groups.values()) for loss in turn if loss is not None]


def _cells(row: Row, several: bool, varying: Collection[str]) -> tuple[str, ...]:
    amount = shown(difference(row))
    unit = f" {row.unit}" if row.unit and row.difference is not None else ""
    effect = "—" if row.effect_size is None else number(row.effect_size)
    name = f"{f'{row.other}: ' if several else ''}{described(row, varying)}"
    return name, *means(row), amount.value + unit, interval(row), effect, p_value(row.p), f"{row.n:,}"


def vary(rows: Sequence[Row]) -> set[str]:
    """The facets in which the rows of some quantity differ."""
    values: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        for name, value in row.facets.items():
            values.setdefault((row.probe, row.quantity, name), set()).add(label(value))
    return {name for (_, _, name), found in values.items() if len(found) > 1}


def described(row: Row, varying: Collection[str]) -> str:
    """The quantity with what of its facets tells it from others."""
    facets = ", ".join(f"{name} {label(value)}" for name, value in row.facets.items() if name in varying)
    return row.title if row.headline or not facets else f"{row.quantity} ({facets})"


def many(unit: str, n: int) -> str:
    """The unit's name for n of them."""
    return unit if n == 1 else f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"


def means(row: Row) -> tuple[str, str]:
    """The means of the base and of the other run as text."""
    return ("—", "—") if row.base_mean is None or row.other_mean is None else apart(row.base_mean, row.other_mean)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """A table whose columns after the first `words` are numbers."""
    rule = ["---" if index < words else "---:" for index in range(len(head))]
    return ["| " + " | ".join(cells) + " |" for cells in (list(map(escaped, head)), rule, *(list(map(escaped, row)) for row in rows))]


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    plain = re.sub(r"([\\`*|]|~~|(?<!\w)_|_(?!\w)|(?<=\])\()", r"\\\1", " ".join(text.split()))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
