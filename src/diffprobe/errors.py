"""The one exception that users see."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A message that says what is wrong and how to mend it, in one line. `exit_code`: 2 usage, 4 the environment cannot do it."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a name that is not among the valid ones, with the nearest valid name."""
    names = sorted(valid)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(names) or 'nothing: none is available'}"
    return UserError(f"unknown {kind} '{name}': {hint}")
