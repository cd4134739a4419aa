"""The section of a model card that people read: a table of the headline numbers, and the verdicts."""

from __future__ import annotations

from collections.abc import Iterator

from diffprobe.errors import UserError
from diffprobe.export.base import missing_of, name_of, settings_of
from diffprobe.report.numbers import shown
from diffprobe.runs.comparison.wording import escaped, table
from diffprobe.runs.result import Run

START, END = "<!-- diffprobe -->", "<!-- /diffprobe -->"


def section(run: Run) -> str:
    """The section in Markdown, between its markers: what was measured, the headline numbers with interval and n, the verdicts."""
    created, version = str(run.about["created"]).split()[0], run.about["versions"]["diffprobe"]
    lines = [START, f"## How {escaped(name_of(run))} behaves", "", f"Measured with diffprobe {version} on {created}.{_levels(run)}"]
    if missing := missing_of(run):
        lines += ["", f"**Incomplete:** {missing}."]
    rows = list(_rows(run))
    if rows:
        lines += ["", *table(("probe", "what", "value", "interval", "n"), rows, 2)]
    for name, findings in run.findings.items():
        lines += ["", f"**{escaped(name)}**", "", *(f"- {escaped(verdict)}" for verdict in findings.verdicts or ("No verdict.",))]
    return "\n".join([*lines, END])


def with_section(text: str, told: str) -> str:
    """The Markdown `text` with the section in place of the one between its markers, or at its end where it has none.

    Raises UserError where the markers are not one pair.
    """
    line_break = "\r\n" if "\r\n" in text else "\n"
    told = told.replace("\n", line_break)
    start, end = text.find(START), text.find(END)
    if (text.count(START), text.count(END)) == (0, 0):
        gap = "" if not text or text.endswith(2 * line_break) else line_break if text.endswith("\n") else 2 * line_break
        return f"{text}{gap}{told}{line_break}"
    if (text.count(START), text.count(END)) != (1, 1) or end < start:
        raise UserError(f"the card needs one {START} and one {END} after it: mend them, or delete all of them for a section at the end")
    return text[:start] + told + text[end + len(END) :]


def _rows(run: Run) -> Iterator[tuple[str, ...]]:
    for name, findings in run.findings.items():
        for card in findings.cards:
            value, interval, unit, reason = shown(card.estimate)
            yield name, card.title, f"{value} {unit}".strip(), interval or reason, f"{card.estimate.n:,}"


def _levels(run: Run) -> str:
    """At which level the intervals are."""
    found: dict[str, list[str]] = {}
    for probe in run.findings:
        level = settings_of(run)[probe].get("level")
        if level is not None:
            found.setdefault(f"{100 * level:g} %", []).append(probe)
    told = list(found) if len(found) < 2 else [f"{level} ({', '.join(probes)})" for level, probes in found.items()]
    return f" Intervals are at {' and '.join(told)}." if told else ""
