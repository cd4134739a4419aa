"""The rules of a gate: what a user writes, and the bounds that it means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diffprobe.errors import UserError

EXAMPLE = "drift.k <= 1.05*baseline"
#: Each relation, and the bound that it sets.
_RELATIONS = {"<=": "upper", "≤": "upper", ">=": "lower", "≥": "lower", "<": "upper", ">": "lower"}
_NAME = r"[A-Za-z_]\w*"
_QUANTITY = r"""[A-Za-z_][\w-]*(?::[^\s{}<>=≤≥"']*)?"""  # what stands after a colon names an instrument: a hub id, a path
_QUOTED = r""""[^"]*"|'[^']*'"""
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


class Line(NamedTuple):
    """A bound as a function of the baseline: factor times its value, plus offset."""

    factor: float
    offset: float

    def at(self, baseline: float) -> float:
        return self.factor * baseline + self.offset


@dataclass(frozen=True)
class Rule:
    """One promise: the quantity lies neither below `lower` nor above `upper`, nor on them where `strict`. Facets are as written."""

    text: str
    probe: str
    quantity: str
    facets: Mapping[str, str]
    lower: Line | None
    upper: Line | None
    strict: bool = False

    @property
    def relative(self) -> bool:
        """Whether it speaks of the baseline."""
        return any(line is not None and line.factor for line in (self.lower, self.upper))

    @property
    def name(self) -> str:
        """The quantity as it was asked for."""
        facets = ", ".join(f"{name}={value}" for name, value in self.facets.items())
        return f"{self.probe}.{self.quantity}{f'{{{facets}}}' if facets else ''}"


def parse_rule(text: str) -> Rule:
    """A rule from `probe.quantity[{facet=value, ...}]`, then `<= >= < >` and an expression, or `within NUMBER[%] of` an expression.

    An expression is linear in `baseline`, or a number; a percentage in it is one of the baseline. Raises UserError with the
    place of the fault.
    """
    reader = _Reader(" ".join(text.split()))
    probe = reader.need(_NAME, "a probe's name")
    reader.need(r"\.", "a dot and a quantity")
    quantity = (reader.take(_QUOTED) or "").strip("\"'") or reader.need(_QUANTITY, "a quantity")
    facets = _facets(reader) if reader.take(r"\{") else {}
    relation = reader.need("|".join((*_RELATIONS, r"within\b")), "<=, >=, <, > or within")
    lower, upper = _margin(reader) if relation == "within" else _limit(_RELATIONS[relation], _expression(reader))
    reader.end()
    return Rule(reader.text, probe, quantity, facets, lower, upper, strict=relation in {"<", ">"})


def read_rules(path: str | Path) -> list[str]:
    """The rules in a text file, one a line; a # at the start of a line or after a blank begins a comment."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read rules from {path} ({error}): give a text file with one a line") from error
    rules = [rule for line in lines if (rule := re.sub(r"(^|\s)#.*", "", line).strip())]
    if not rules:
        raise UserError(f"{path} holds no rule: write one a line, such as {EXAMPLE}")
    return rules


class _Reader:
    """A rule, read from left to right; blanks count for nothing."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def take(self, pattern: str) -> str | None:
        """What the pattern matches here, or None."""
        found = re.compile(rf"\s*({pattern})").match(self.text, self.place)
        if found is None:
            return None
        self.place = found.end()
        return found.group(1).strip()

    def need(self, pattern: str, expected: str) -> str:
        found = self.take(pattern)
        if found is None:
            raise self.fault(f"expected {expected}")
        return found

    def number(self, expected: str = "a number") -> float:
        found = float(self.need(_NUMBER, expected))
        if not math.isfinite(found):
            raise self.fault("the number before it is too large")
        return found

    def end(self) -> None:
        if self.text[self.place :].strip():
            raise self.fault("expected +, -, *, / or the end")

    def fault(self, told: str) -> UserError:
        rest = self.text[self.place :].lstrip()
        where = f"character {len(self.text) - len(rest) + 1} ('{rest[:20]}')" if rest else "its end"
        return UserError(f"the rule '{self.text}' cannot be read at {where}: {told}; an example is '{EXAMPLE}'")


def _facets(reader: _Reader) -> dict[str, str]:
    """`name=value, ...}` after the opening brace; a value with a comma or a brace is quoted."""
    found: dict[str, str] = {}
    while True:
        name = reader.need(_NAME, "a facet's name")
        if name in found:
            raise reader.fault(f"the facet {name} comes twice")
        reader.need("=", "= and the facet's value")
        quoted = reader.take(_QUOTED)
        found[name] = quoted[1:-1] if quoted is not None else reader.need(r"""[^\s,{}"'][^,{}]*""", "the facet's value")
        if reader.need(r"[,}]", "a comma or }") == "}":
            return found


def _limit(bound: str, line: Line) -> tuple[Line | None, Line | None]:
    return (line, None) if bound == "lower" else (None, line)


def _margin(reader: _Reader) -> tuple[Line, Line]:
    """`NUMBER[%] of EXPRESSION` after `within`: the lower and the upper bound."""
    margin = reader.number("the margin, a number")
    if not margin > 0:
        raise reader.fault("the margin before it must be above 0")
    relative = reader.take("%") is not None
    reader.need(r"of\b", "'of baseline'")
    factor, offset = _expression(reader)
    if relative:
        lower, upper = (Line(share * factor, share * offset) for share in (1 - margin / 100, 1 + margin / 100))
        return lower, upper
    return Line(factor, offset - margin), Line(factor, offset + margin)


def _expression(reader: _Reader) -> Line:
    """Terms with signs between them."""
    sign, sums = _sign(reader) or 1, {"baseline": 0.0, "": 0.0, "%": 0.0}
    while sign:
        number, kind = _term(reader)
        sums[kind] += sign * number
        sign = _sign(reader)
    if sums["%"] and not sums["baseline"]:
        raise reader.fault("a percentage is one of the baseline: write 0.05 for 5 %, or add baseline")
    return Line(sums["baseline"] + sums["%"], sums[""])


def _sign(reader: _Reader) -> int:
    """1 or -1 for one or more signs, 0 where there is none."""
    signs = reader.take(r"[+-](?:\s*[+-])*")
    return 0 if signs is None else -1 if signs.count("-") % 2 else 1


def _term(reader: _Reader) -> tuple[float, str]:
    """A product: its number, and "baseline" where that is in it, "%" where it is a percentage of something not named, else ""."""
    product, named, percentage, by = 1.0, False, False, "*"
    while by:
        if by == "*" and not named and reader.take(r"baseline\b"):
            named = True
        else:
            number = reader.number("a number" if named or by == "/" else "a number or baseline")
            if by == "/" and not number:
                raise reader.fault("nothing can be divided by 0")
            if reader.take("%"):
                number, percentage = number / 100, True
            product = product * number if by == "*" else product / number
        by = reader.take(r"[*/×]") or ""
        by = "*" if by == "×" else by
    return product, "baseline" if named else "%" if percentage else ""
