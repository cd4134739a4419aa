"""A gate: rules that a run must keep, by itself or against a baseline, for a release or a pull request."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from diffprobe.errors import UserError
from diffprobe.files import explained, whole
from diffprobe.runs.comparison.wording import escaped, table
from diffprobe.runs.gating.ruling import Outcome, Ruling, decide, word
from diffprobe.runs.gating.witness import GatedRun, Witness
from diffprobe.runs.pairing import check, checked, incomplete, names_of
from diffprobe.runs.result import Run, open_run
from diffprobe.runs.rules import EXAMPLE, parse_rule

_CODES: dict[Outcome, int] = {"pass": 0, "fail": 1, "inconclusive": 3}


@dataclass(frozen=True)
class GateResult:
    """What became of every rule, in the order given. `notes`: what else a reader should know. `incomplete`: a sentence for each of "run"
    and "baseline" that is not whole.
    """

    run: str
    baseline: str | None
    level: float
    outcomes: tuple[Ruling, ...]
    notes: tuple[str, ...] = ()
    incomplete: Mapping[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """Of all rules together, and of the runs: fail where one fails, pass where all pass and the runs are whole."""
        found = {one.outcome for one in self.outcomes}
        return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found or self.incomplete else "pass"

    @property
    def passed(self) -> bool:
        return self.outcome == "pass"

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return _CODES[self.outcome]

    def junit(self) -> str:
        """JUnit XML: a test case a rule, and one a run, that it is whole. What is not decided is skipped: it is no failure."""
        roles = ("run", "baseline") if self.baseline else ("run",)
        counts = Counter(one.outcome for one in self.outcomes)
        skipped = counts["inconclusive"] + len(self.incomplete)
        numbers = {"tests": len(self.outcomes) + len(roles), "failures": counts["fail"], "errors": 0, "skipped": skipped, "time": 0}
        totals = {name: str(value) for name, value in numbers.items()}
        root = ET.Element("testsuites", {"name": "diffprobe gate", **totals})
        suite = ET.SubElement(root, "testsuite", {"name": _legal(self._title()), **totals})
        properties = ET.SubElement(suite, "properties")
        about = {"run": self.run, "baseline": self.baseline or "", "level": f"{self.level:g}", "outcome": self.outcome}
        for name, value in (*about.items(), *(("note", note) for note in self.notes)):
            ET.SubElement(properties, "property", {"name": name, "value": _legal(value)})
        for one in self.outcomes:
            case = ET.SubElement(suite, "testcase", {"classname": f"diffprobe.gate.{one.probe}", "name": _legal(one.rule), "time": "0"})
            if one.outcome != "pass":
                kind = "failure" if one.outcome == "fail" else "skipped"
                ET.SubElement(case, kind, {"message": _legal(one.sentence), "type": one.outcome})
            ET.SubElement(case, "system-out").text = _legal(one.sentence)
        for role in roles:
            case = ET.SubElement(suite, "testcase", {"classname": "diffprobe.gate", "name": f"the {role} is whole", "time": "0"})
            if role in self.incomplete:
                ET.SubElement(case, "skipped", {"message": _legal(self.incomplete[role]), "type": "inconclusive"})
        ET.indent(root)
        return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'

    def markdown(self) -> str:
        """A table of the rules that fits a pull request."""
        rows = [(word(one.outcome), one.rule, one.sentence) for one in self.outcomes]
        lines = [f"## {word(self.outcome)}: {escaped(self._title())}", "", *table(("outcome", "rule", "what was found"), rows, 3)]
        for note in self.notes:
            lines += ["", escaped(note)]
        return "\n".join(lines) + "\n"

    def write(self, junit: str | Path | None = None, markdown: str | Path | None = None) -> list[Path]:
        """Write either or both; returns their paths."""
        wanted = [(Path(path), text) for path, text in ((junit, self.junit()), (markdown, self.markdown())) if path is not None]
        for target, text in wanted:
            with explained(target), whole(target) as partial:
                partial.write_text(text, encoding="utf-8")
        return [target for target, _ in wanted]

    def _title(self) -> str:
        return f"{self.run} against {self.baseline}" if self.baseline else self.run


def gate(
    run: Run | str | Path,
    baseline: Run | str | Path | None,
    rules: str | Iterable[str],
    *,
    across: str | Sequence[str] = (),
    level: float = 0.95,
) -> GateResult:
    """Whether a run keeps the rules, such as "drift.k <= 1.05*baseline" (docs/gate.md has their grammar).

    `across`: settings that are meant to differ from the baseline's. `level`: of the two-sided intervals that decide. Raises UserError
    for rules that cannot be read or name what the runs do not have, and for runs that cannot be compared.
    """
    promises = [parse_rule(text) for text in dict.fromkeys([rules] if isinstance(rules, str) else rules)]
    if not promises:
        raise UserError(f"a gate needs a rule: add one, such as --rule '{EXAMPLE}'")
    checked(level)
    across = names_of(across)
    if baseline is None:
        lacking = next((rule.text for rule in promises if rule.relative), None)
        if lacking is not None:
            raise UserError(f"the rule '{lacking}' speaks of a baseline: name that run (--baseline RUN)")
        if across:
            raise UserError("without a baseline there is nothing to compare across: name that run (--baseline RUN), or leave --across out")
    sides = [GatedRun(one if isinstance(one, Run) else open_run(one), level) for one in (run, baseline) if one is not None]
    if baseline is not None:
        check(sides[1].run, sides[0].run, across)
    witness = Witness(sides[0], sides[1] if baseline is not None else None, across)
    outcomes = tuple(decide(rule, witness.of(rule), level) for rule in promises)
    partial = {
        role: f"{incomplete(side.name, side.run.done, side.run.planned)}; the rules are set against what it has."
        for role, side in zip(("run", "baseline"), sides, strict=False)
        if side.missing
    }
    names = [side.name for side in sides]
    return GateResult(
        names[0],
        names[1] if baseline is not None else None,
        level,
        outcomes,
        (*partial.values(), *witness.notes()),
        partial,
    )


def _legal(text: str) -> str:
    """Text without the characters that XML has no way to write."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
