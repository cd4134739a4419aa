"""Places in settings as YAML has them ('sweep.reference', 'generated.captions.prompts'): what lies there, and where two settings differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from diffprobe.errors import unknown

_BLANK = "…"
_LONG = 60  # characters of a value that is told
_LEAD = 12  # of them before the first that differs
_NOTHING = "nothing"


def require(settings: Any, path: Sequence[str], kind: str) -> None:
    """Raise UserError with the nearest valid name where a step of the path leads nowhere."""
    here = [settings]
    for depth, step in enumerate(path):
        found = [part for value in here for part in _under(value, step)]
        if not found:
            known = (".".join([*path[:depth], name]) for value in here for name in _names(value))
            raise unknown(f"setting of {kind}", ".".join(path), known)
        here = found


def at(value: Any, path: Sequence[str]) -> list[Any]:
    """What lies at a path. In a list, a step is the name of an item ('name: captions', 'captions=...'), or else goes into every item."""
    return [value] if not path else [found for part in _under(value, path[0]) for found in at(part, path[1:])]


def shared(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether any value at a place is one of the other's, in whatever order; of two lists, whether they have an item in common."""
    return any(a == b or (isinstance(a, list) and isinstance(b, list) and any(item in b for item in a)) for a in one for b in other)


def blanked(value: Any, path: Sequence[str]) -> Any:
    """The same with a blank at a path."""
    if not path:
        name = _name(value)
        return f"{name}={_BLANK}" if isinstance(value, str) and name else _BLANK
    step, *rest = path
    if isinstance(value, dict):
        return {**value, step: blanked(value[step], rest)} if step in value else value
    if not isinstance(value, list):
        return value
    if any(_name(item) == step for item in value):
        return [blanked(item, rest) if _name(item) == step else item for item in value]
    return [blanked(item, path) if isinstance(item, dict) else item for item in value]


def difference(one: Any, other: Any, place: str) -> str:
    """The first leaf in which two values of a setting differ, with both: 'its sweep.k is 3, and the recipe's 5'."""
    if isinstance(one, dict) and isinstance(other, dict):
        name = next(name for name in {**other, **one} if one.get(name, _NOTHING) != other.get(name, _NOTHING))
        return difference(one.get(name, _NOTHING), other.get(name, _NOTHING), f"{place}.{name}")
    if isinstance(one, list) and isinstance(other, list) and not (_brief(one) and _brief(other)):
        pairs = enumerate(zip_longest(one, other, fillvalue=_NOTHING))
        index, (a, b) = next((index, pair) for index, pair in pairs if pair[0] != pair[1])
        return difference(a, b, f"{place}.{_name(b) or _name(a) or index}")
    return f"its {place} is {_told(one, other)}, and the recipe's {_told(other, one)}"


def _under(value: Any, step: str) -> list[Any]:
    if isinstance(value, dict):
        return [value[step]] if step in value else []
    if not isinstance(value, list):
        return []
    named = [item for item in value if _name(item) == step]
    return named or [item[step] for item in value if isinstance(item, dict) and step in item]


def _names(value: Any) -> list[str]:
    if isinstance(value, dict):
        return list(value)
    items = value if isinstance(value, list) else []
    return [name for item in items for name in (_name(item), *(item if isinstance(item, dict) else ())) if name]


def _name(item: Any) -> str:
    """What an item of a list is called, where it is."""
    if isinstance(item, dict):
        return str(item.get("name", ""))
    return item.partition("=")[0] if isinstance(item, str) and "=" in item else ""


def _brief(items: list[Any]) -> bool:
    return not any(isinstance(item, dict) for item in items) and len(_text(items)) <= _LONG


def _text(value: Any) -> str:
    return value if value is _NOTHING else json.dumps(value, ensure_ascii=False)


def _told(value: Any, other: Any) -> str:
    """A value, and of a long one the part in which it differs from the other."""
    text, beside = _text(value), _text(other)
    if len(text) <= _LONG:
        return text
    first = next((place for place, (a, b) in enumerate(zip(text, beside, strict=False)) if a != b), min(len(text), len(beside)))
    begin = max(0, first - _LEAD) if first >= _LONG else 0
    return f"{'…' if begin else ''}{text[begin : begin + _LONG]}{'…' if begin + _LONG < len(text) else ''}"
