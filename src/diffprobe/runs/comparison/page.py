"""A comparison as a page of the same house as a run's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffprobe.measures.stats import Estimate
from diffprobe.probes import PROBES
from diffprobe.probes.base import Card, Findings
from diffprobe.report.document import Document, Section, Table
from diffprobe.report.numbers import number, shown
from diffprobe.runs.comparison import wording
from diffprobe.runs.comparison.charts import charts
from diffprobe.runs.comparison.contrast import Against, Row
from diffprobe.runs.comparison.losses import exhibits
from diffprobe.runs.comparison.sides import Side, identities, shared_identity

_METHOD = (
    "Rows of the runs are paired by what was asked (such as image, prompt, seed and level), and every quantity is computed in each run "
    "from the rows that both have, one value a unit. Differences are the other run minus the base, unit by unit: their mean with a "
    "studentised bootstrap interval over units, their Hodges-Lehmann shift, and d_z, the mean over their standard deviation.\n\n"
    "p is that of a sign-flip test of the mean, adjusted by Holm's method within a family: the main quantities of all probes and runs "
    "are one, everything else of a probe another. Runs are told apart where the adjusted p is at most {alpha:.3g}. The smallest difference "
    "that the design could have seen is the one that a paired t test finds with power 0.8 at the strictest step of Holm's method."
)


def document(
    sides: Sequence[Side],
    found: Sequence[Against],
    rows: Sequence[Row],
    sentences: Mapping[str, Sequence[str]],
    notices: Sequence[str],
    level: float,
) -> Document:
    """The page; `sentences` are the verdicts by probe."""
    base, others = sides[0].name, sides[1:]
    sections = tuple(
        _section(
            sides,
            [against for against in found if against.probe == probe],
            [row for row in rows if row.probe == probe],
            sentences.get(probe, ()),
            level,
        )
        for probe in dict.fromkeys(against.probe for against in found)
    )
    return Document(
        title=wording.heading([side.name for side in sides]),
        identity=shared_identity(sides),
        planned=0,
        done=0,
        failed=(),
        sections=sections,
        media=sides[0].media,
        created=max(str(side.about["created"]) for side in sides),
        kind="comparison",
        status=(f"{1 + len(others)} runs", *wording.rates(found, base)),
        notices=tuple(notices),
        identities=identities(sides),
        folders={str(index): side.media for index, side in enumerate(sides)},
    )


def _section(sides: Sequence[Side], found: Sequence[Against], rows: Sequence[Row], sentences: Sequence[str], level: float) -> Section:
    base, others = sides[0].name, [side.name for side in sides[1:]]
    probe = found[0].probe
    several = len(others) > 1
    findings = Findings(
        tuple(_estimate(row, several) for row in rows),
        tuple(sentences),
        tuple(_card(row, base, several) for row in rows if row.headline),
        tuple(charts(rows, found, base)),
        tuple(exhibits(found, sides)),
    )
    question = f"How does {others[0]} differ from {base}?" if not several else f"How do the other runs differ from {base}?"
    method = _METHOD.format(alpha=1 - level)
    return Section(probe, question, findings, method, PROBES[probe].cites, _table(rows, base, others))


def _card(row: Row, base: str, several: bool) -> Card:
    """A difference as a headline, which says which side it favours."""
    mine, theirs = wording.means(row)
    note = f"{theirs} against {mine} in {base}; {row.gain or row.outcome}, p {wording.p_value(row.p)}"
    return Card(f"{f'{row.other}: ' if several else ''}{row.title}", wording.difference(row), note)


def _table(rows: Sequence[Row], base: str, others: Sequence[str]) -> Table:
    """The headline quantities; what got worse is marked."""
    chosen = [row for row in rows if row.headline]
    several = len(others) > 1
    cells = []
    for row in chosen:
        amount = shown(wording.difference(row))
        effect, least = ("—" if value is None else number(value) for value in (row.effect_size, row.detectable))
        name = f"{row.other}: {row.title}" if several else row.title
        value = f"{amount.value} {amount.unit}".strip()
        told = row.gain or row.outcome
        cells.append((name, *wording.means(row), value, wording.interval(row), effect, wording.p_value(row.p), f"{row.n:,}", least, told))
    columns = (
        "quantity",
        base,
        "other" if several else others[0],
        "difference",
        "interval",
        "d_z",
        "p (Holm)",
        "n",
        "detectable",
        "outcome",
    )
    worse = frozenset(index for index, row in enumerate(chosen) if row.gain == "worse")
    return Table(columns, tuple(cells), frozenset(range(1, 9)), worse)


def _estimate(row: Row, several: bool) -> Estimate:
    """The difference with what it speaks of, and what stands behind it."""
    behind = {"base mean": row.base_mean, "other mean": row.other_mean, "d_z": row.effect_size, "p (Holm)": row.p}
    facets = {
        **({"run": row.other} if several else {}),
        **row.facets,
        **{name: float(f"{value:.4g}") for name, value in behind.items() if value is not None},
    }
    return Estimate(row.probe, row.quantity, row.difference, row.lo, row.hi, row.n, row.unit, facets, row.reason)
