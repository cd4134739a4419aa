"""`diffprobe validate`: every known answer holds, and a wrong one would be seen."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from diffprobe.measures.geometry.spectrum import local_rank
from diffprobe.measures.speciation.gaussian import gaussian_entropy
from diffprobe.validate import VALIDATIONS, Check

SPECIATION = sys.modules["diffprobe.validate.speciation"]
GEOMETRY = sys.modules["diffprobe.validate.geometry"]


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


@pytest.mark.parametrize("part", ["_gaussian", "_times", "_scaling", "_steps"])
def test_the_closed_forms_of_speciation_hold(part: str) -> None:
    checks = list(getattr(SPECIATION, part)())
    assert len(checks) > 2
    assert not [check for check in checks if not check.holds]


def test_the_distance_for_its_square_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's text has the distance where the control parameter needs its square: nothing but Gamma = 1 would agree."""

    def rooted(gamma: ArrayLike) -> NDArray[np.float64]:
        return gaussian_entropy(np.sqrt(np.asarray(gamma)))

    monkeypatch.setattr(SPECIATION, "gaussian_entropy", rooted)
    wrong = [check.what for check in SPECIATION._gaussian() if not check.holds]
    assert len([what for what in wrong if "entropy at control parameter" in what]) == len(SPECIATION.TABLE) - 1


def test_a_production_of_half_the_size_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The factor of the identity: g^2/4 where g^2/2 belongs disagrees with the derivative of the entropy in every world."""
    plain = SPECIATION.mixture_entropy

    def halved(*arguments: object, **settings: object) -> object:
        found = plain(*arguments, **settings)
        return found._replace(production=found.production / 2)

    monkeypatch.setattr(SPECIATION, "mixture_entropy", halved)
    monkeypatch.setattr(SPECIATION, "_SEEDS", 400)
    checks = [check for check in SPECIATION._production() if "production" in check.what]
    assert len(checks) == 27
    assert not [check.what for check in checks if check.holds]


@pytest.mark.parametrize("part", ["_decoders", "_denoiser", "_first_layer", "_deeper", "_partition"])
def test_the_exact_answers_of_geometry_hold(part: str) -> None:
    checks = list(getattr(GEOMETRY, part)())
    assert len(checks) > 1
    assert not [check for check in checks if not check.holds]


def test_images_in_0_to_1_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the Jacobian changes every volume, and no rank."""
    monkeypatch.setattr(GEOMETRY, "_shown", lambda codec: codec.decode)
    wrong = [check.what for check in GEOMETRY._decoders() if not check.holds]
    assert len(wrong) == 6
    assert not [what for what in wrong if "local rank" in what or "non-zero" in what]


def test_the_rank_of_squares_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """nu takes the entropy of singular values, not of their squares."""
    monkeypatch.setattr(GEOMETRY, "local_rank", lambda values: local_rank(torch.square(values)))
    wrong = [check.what for check in GEOMETRY._decoders() if not check.holds]
    assert len(wrong) == 3
    assert all("local rank" in what for what in wrong)


def test_a_neighbourhood_of_half_the_radius_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = GEOMETRY.local_complexity
    monkeypatch.setattr(GEOMETRY, "local_complexity", lambda f, z, radius, dims: plain(f, z, radius / 2, dims))
    assert not [check.what for check in (*GEOMETRY._first_layer(), *GEOMETRY._deeper()) if check.truth and check.holds]
