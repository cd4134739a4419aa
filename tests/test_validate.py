"""`diffprobe validate`: every known answer holds, and a wrong one would be seen."""

import pytest

from diffprobe.validate import VALIDATIONS, Check


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VALIDATIONS))
def test_every_known_answer_holds(name: str) -> None:
    wrong = [check for check in VALIDATIONS[name]() if not check.holds]
    assert not wrong


def test_a_wrong_answer_is_seen() -> None:
    assert Check("right", 1.01, 1.0, 0.02).holds
    assert not Check("wrong", 1.03, 1.0, 0.02).holds
    assert not Check("sign", -1.0, 1.0, 0.02).holds
    assert not Check("none", float("nan"), 1.0, 0.02).holds
