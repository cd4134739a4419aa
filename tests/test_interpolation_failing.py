"""From which N the interpolation probe says that a scheme fails, and which scheme it chooses, from records that are made up."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from diffprobe.probes.interpolation.degeneration import fates, flagged_shares
from diffprobe.probes.interpolation.scores import scored
from diffprobe.probes.interpolation.summary import summarise
from diffprobe.probes.interpolation.tables import frame
from tests.interpolation_records import (
    BASE,
    OFFSET,
    WANTED,
    Curve,
    failing,
    inversions,
    latents,
    mixtures,
    noise,
    only,
    records,
    said,
    study,
    told,
)


def test_plain_schemes_degenerate_and_channel_means_cure_it() -> None:
    found = summarise(WANTED, study(distance=failing("fix", "nin")))
    for scheme in ("fix", "nin"):
        point = told(found, f"degeneration_n:{scheme}")
        assert (point.value, point.lo, point.hi, point.n) == (16, 16, 16, 24)
    held = told(found, "degeneration_n:nin/channel")
    assert (held.value, held.reason) == (None, "does not degenerate up to N = 16")
    rise = told(found, "distance_rise:eye", scheme="fix", n=16)
    assert rise.facets["than_n"] == 2
    assert rise.value == pytest.approx(0.126, abs=0.005)
    assert said(found, "fix degenerates from N = 16 (its distance rises by 0.12", "over N = 2)")
    assert said(found, "Channel means set apart cure it: nin/channel", "holds up to N = 16", "times the images' common channel offset")
    assert said(found, "For this model mix by nin/channel: up to N = 16 its mixtures do not leave their group or wash out")
    card = next(one for one in found.cards if one.title == "plain mixing fails")
    assert (card.estimate.value, card.note) == (16, "N from which fix degenerates")


def test_the_margin_is_the_studys() -> None:
    records_ = study(distance=failing("fix"))
    assert told(summarise(replace(WANTED, margin=0.02), records_), "degeneration_n:fix").value == 8
    assert told(summarise(replace(WANTED, margin=0.2), records_), "degeneration_n:fix").value is None


def test_what_may_fail_is_not_said_to_hold() -> None:
    """A rise of the margin itself, which the interval leaves open; and half of the sharpness."""
    near: Curve = lambda scheme, n: BASE + 0.05 * (n == 16 and scheme != "none")  # noqa: E731
    half: Curve = lambda scheme, n: 0.5 if n == 16 else 1.0  # noqa: E731
    found = summarise(only("nin", "nin/channel"), study(wanted=only("nin", "nin/channel"), distance=near))
    assert said(found, "For this model mix by nin", "do not surely leave their group or wash out")
    assert said(found, "plain mixing does not surely degenerate")
    assert told(found, "degeneration_n:nin").value is None
    found = summarise(only("nin", "nin/channel"), study(wanted=only("nin", "nin/channel"), sharpness=half))
    assert said(found, "do not surely leave their group or wash out")
    assert said(found, "It is not sure that nin at N = 16 and nin/channel at N = 16 keep 50% of the images' sharpness")


def test_a_rise_that_does_not_last_is_no_degeneration() -> None:
    found = summarise(WANTED, study(distance=lambda scheme, n: BASE + 0.2 * (n == 4 and scheme == "fix")))
    point = told(found, "degeneration_n:fix")
    assert point.value is None
    assert told(found, "distance_rise:eye", scheme="fix", n=4).value == pytest.approx(0.2, abs=0.01)


def test_a_scheme_that_ends_at_the_margin_is_rarely_called_degenerate() -> None:
    """At most by the chance of one tail; with twice the margin nearly always."""

    rows = [
        {"group": group, "draw": draw, "scheme": "fix", "n": n, "kind": "centroid", "members": [draw, n], "flag": None}
        for group, draw, n in product("ab", range(8), (2, 16))
    ]
    table, wanted = frame(records(Mixtures=[rows]), "Mixtures"), only("fix")
    shares, raised = flagged_shares(table), np.array([row["n"] == 16 for row in rows])

    def rate(rise: float) -> float:
        found = [
            fates(scored(table, 0.04 * noise(len(rows), seed=seed) + rise * raised, wanted), None, shares, None, wanted)
            for seed in range(200)
        ]
        return float(np.mean([one.degenerates.n is not None for (one,) in found]))

    assert rate(0.05) < 0.06
    assert rate(0.15) > 0.95


def test_bland_mixtures_are_told_although_they_lie_near() -> None:
    """They are nearest to the mean and yet not chosen."""
    near: Curve = lambda scheme, n: 0.1 if scheme == "none" else BASE  # noqa: E731
    found = summarise(WANTED, study(distance=near))
    point = told(found, "washout_n:none")
    assert (point.value, point.hi) == (8, 8)
    assert point.lo in (4, 8)  # one half itself is not surely below
    assert told(found, "washout_n:fix").reason == "does not wash out up to N = 16"
    assert said(found, "plain averaging (none) washes out from N = 8 (its sharpness is 0.35")
    assert said(found, "Plain averaging (none) lies nearer still (0.09", "by bland pictures: they wash out from N = 8")
    assert not said(found, "mix by plain averaging")
    assert told(found, "sharpness", scheme="none", n=8).value == pytest.approx(8**-0.5, abs=0.01)


def test_washed_out_is_by_what_the_model_makes_of_noise_where_that_is_bland() -> None:
    z = latents(32, OFFSET)
    dark: Curve = lambda scheme, n: 0.3  # noqa: E731
    parts: dict[str, Any] = {"Inversions": [inversions("cats", "images", z)], "Mixtures": [mixtures("cats", z, sharpness=dark)]}
    assert told(summarise(WANTED, records(**parts)), "washout_n:nin").value == 2
    fresh = mixtures("cats", latents(32), sharpness=lambda scheme, n: 0.4, wanted=only("fix"), origin="noise")
    generated = inversions("cats", "generated", latents(9), sharpness=0.8, **{"feature:eye": [1.0, 0.0, 0.0]})
    for more in ({**parts, "Mixtures": [*parts["Mixtures"], fresh]}, {**parts, "Inversions": [*parts["Inversions"], generated]}):
        found = summarise(WANTED, records(**more))
        assert told(found, "washout_n:nin").value is None
        assert told(found, "sharpness_fresh").value == pytest.approx(0.4, abs=0.01)
        assert told(found, "distance_fresh:eye").value is not None
    dimmer = summarise(WANTED, records(**{**parts, "Mixtures": [mixtures("cats", z, sharpness=lambda s, n: 0.1), fresh]}))
    assert said(dimmer, "What this model makes of fresh noise has 0.4", "what is below half of that is called washed out")


def test_draws_without_an_image_are_a_failure_too() -> None:
    flag = lambda scheme, n, draw: "not finite" if scheme == "fix" and n == 16 and draw > 3 else None  # noqa: E731
    found = summarise(WANTED, study(flag=flag))
    assert said(found, "fix gives no image that counts from N = 16 for most draws")
    assert said(found, "16 of 384 mixtures do not count: not finite.")
    assert told(found, "flagged", of="mixtures", flag="not finite").value == 16
    assert told(found, "distance:eye", scheme="fix", n=16).n == 8


def test_a_model_that_does_not_degenerate_is_told_with_its_figures() -> None:
    """All are alike: the simplest that gives an image back is chosen, and what is shared and α are said."""
    found = summarise(only("fix", "nin", "nin/channel"), study(wanted=only("fix", "nin", "nin/channel")))
    assert said(
        found,
        "For this model mix by nin:",
        "; as far as 24 draws tell, nin/channel (less simple) and fix (which gives no single image back) are no farther.",
    )
    assert said(found, "Up to N = 16 plain mixing does not degenerate on this model by fix (its distance at N = 16 is", "and nin (")
    assert said(found, "its latents share b² = 0.00", "a power of 0.99", "and its noisiest level keeps α = 0.05 of an image")
    assert not said(found, "cure")
    assert next(c for c in found.cards if c.title == "plain mixing fails").estimate.reason == "does not fail up to N = 16"


def test_the_simplest_is_chosen_of_schemes_that_all_give_an_image_back() -> None:
    wanted = only("nin", "nin/channel")
    found = summarise(wanted, study(wanted=wanted))
    assert said(found, "mix by nin:", "; as far as 24 draws tell, nin/channel (less simple) is no farther.")


def test_of_many_that_are_no_farther_two_are_named() -> None:
    wanted = only("nin", "slerp", "blend", "nin/channel", "nin/lowpass")
    found = summarise(wanted, study(wanted=wanted))
    assert said(found, "mix by nin:", "tell, slerp (less simple), blend (less simple) and 2 more are no farther.")


def test_the_nearest_is_chosen_where_it_is_surely_nearer() -> None:
    found = summarise(WANTED, study(distance=lambda scheme, n: BASE - 0.02 * (scheme == "nin/channel")))
    assert said(found, "mix by nin/channel:")
    assert not said(found, "as far as 24 draws tell")


def test_where_every_scheme_fails_the_one_that_lasts_longest_is_named() -> None:
    late: Curve = lambda scheme, n: BASE + (0.3 if n >= (16 if scheme == "nin/channel" else 4) else 0.0)  # noqa: E731
    found = summarise(WANTED, study(distance=late))
    assert said(found, "No scheme holds up to N = 16 on this model; nin/channel does so longest, below N = 16.")
    assert said(found, "Channel means set apart do not cure it: nin/channel degenerates from N = 16")


def test_low_frequencies_may_cure_what_channel_means_do_not() -> None:
    wanted = only("nin", "nin/global", "nin/channel", "nin/lowpass")
    found = summarise(wanted, study(wanted=wanted, distance=failing("nin", "nin/global", "nin/channel")))
    assert said(found, "A common mean set apart does not cure it: nin/global degenerates")
    assert said(found, "Channel means set apart do not cure it: nin/channel degenerates")
    assert said(found, "Low frequencies set apart cure it: nin/lowpass (its distance at N = 16 is")
    assert said(found, "mix by nin/lowpass")


def test_what_is_set_apart_may_itself_do_harm() -> None:
    found = summarise(WANTED, study(distance=failing("nin/channel")))
    assert said(found, "What is set apart does harm here: nin/channel degenerates from N = 16")


def test_a_scheme_that_is_far_from_its_group_from_the_start_leaves_it() -> None:
    """It cannot get worse than at its own smallest N, and is set against the nearest other there."""
    far: Curve = lambda scheme, n: BASE + 0.3 * (scheme == "fix")  # noqa: E731
    found = summarise(WANTED, study(distance=far))
    assert told(found, "degeneration_n:fix").value is None
    assert said(found, "fix leaves its group from N = 2 (its distance is", "where the nearest scheme has")
    assert not said(found, "nin leaves its group")
    assert not said(found, "mix by fix")


def test_one_scheme_alone_is_told_and_not_chosen() -> None:
    wanted = only("nin/channel")
    found = summarise(wanted, study(wanted=wanted))
    assert said(found, "nin/channel holds up to N = 16 (its distance at N = 16 is")
    assert not said(found, "For this model")


def test_a_scheme_that_is_not_measured_so_far_is_not_preferred() -> None:
    """What holds up to 4 is no rival of what holds up to 16."""
    rows = study(distance=lambda scheme, n: BASE - 0.1 * (scheme == "fix"))
    table = rows["Mixtures"].to_pandas()
    short = table[(table["scheme"] != "fix") | (table["n"] <= 4)].to_dict("records")
    found = summarise(WANTED, {**rows, **records(Mixtures=[short])})
    assert not said(found, "mix by fix")


def test_a_set_that_loses_its_variety_is_told() -> None:
    far: Callable[[str, int, int], Any] = lambda scheme, n, draw: [0.0, 0.0, 2.0 + 0.01 * draw] if n == 16 else None  # noqa: E731
    z = latents(32, OFFSET)
    rows = [
        row if (moved := far(row["scheme"], row["n"], row["draw"])) is None else {**row, "feature:eye": moved}
        for row in mixtures("cats", z)
    ]
    found = summarise(WANTED, records(Inversions=[inversions("cats", "images", z)], Mixtures=[rows]))
    assert said(found, "As a set its mixtures become less like the images: the kernel distance is", "at N = 16 and", "at N = 2")


def test_a_cure_that_is_not_sure_is_said_to_be_none() -> None:
    """Of two schemes the one that surely holds is named; without it nothing is sure."""
    near: Curve = lambda scheme, n: failing("nin")(scheme, n) + 0.05 * (scheme == "nin/channel" and n == 16)  # noqa: E731
    wanted = only("nin", "nin/channel")
    found = summarise(wanted, study(wanted=wanted, distance=near))
    assert said(found, "Channel means set apart may cure it: nin/channel", "not surely failing up to N = 16")
    both = only("nin", "nin/channel", "lol/channel")
    found = summarise(both, study(wanted=both, distance=near))
    assert said(found, "Channel means set apart cure it: lol/channel (its", ") holds up to N = 16.")
    assert not said(found, "cure it", "nin/channel (")
