"""What the interpolation probe concludes from whole and from unfinished records: sentences, charts, gallery, comparison."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from diffprobe.probes.base import Findings
from diffprobe.probes.interpolation.compared import comparables
from diffprobe.probes.interpolation.summary import summarise
from diffprobe.probes.interpolation.tables import Wanted
from diffprobe.report.charts import domains, spec
from tests.interpolation_records import (
    BASE,
    OFFSET,
    SIZES,
    WANTED,
    Matrix,
    Row,
    alignments,
    chart,
    inversions,
    latents,
    mixtures,
    offsets,
    only,
    records,
    said,
    study,
    told,
    with_column,
)

Curve = Callable[[str, int], float]


def failing(*schemes: str) -> Curve:
    """Distances of schemes that leave their group with N: by 0.128 at 16, by 0.04 at 8; of others that stay."""
    return lambda scheme, n: BASE + (5e-4 * (n**2 - 4) if scheme in schemes else 0.0)


def everything() -> dict[str, Any]:
    z = {group: latents(32, OFFSET, seed) for seed, group in enumerate(WANTED.groups)}
    others: dict[str, Matrix | float] = {"generated": 0.7 * OFFSET, "noised": 0.2 * OFFSET, "noise": 0.0}
    more = {(group, origin): latents(16, d, 50 + i) for origin, d in others.items() for i, group in enumerate(WANTED.groups)}
    kept = lambda scheme, n, draw: f"{scheme}-{n}-{draw}.webp" if draw < 2 else None  # noqa: E731
    seen = {"picture": lambda i: f"{i}.webp" if i < 3 else None, "reconstruction": 0.1, "reconstruction_pixels": 0.01}
    moved = [{**row, "picture": f"{row['at']}-{row['offset']}.webp"} for row in offsets("cats", {"noise": 0.5, "data": 0.1}, seeds=4)]
    return records(
        Inversions=[
            *(inversions(group, "images", one, **seen) for group, one in z.items()),
            *(inversions(group, origin, one) for (group, origin), one in more.items()),
        ],
        Alignments=[
            *(alignments(group, "images", one) for group, one in z.items()),
            *(alignments(group, origin, one) for (group, origin), one in more.items()),
        ],
        Mixtures=[mixtures(group, one, failing("fix", "nin"), picture=kept) for group, one in z.items()],
        Offsets=[moved],
    )


def test_nothing_measured_is_said_to_be() -> None:
    assert summarise(WANTED, {}) == Findings((), verdicts=("Nothing is measured yet.",))
    empty = {name: table.slice(0, 0) for name, table in everything().items()}
    assert summarise(WANTED, empty) == Findings((), verdicts=("Nothing is measured yet.",))
    assert comparables(WANTED, empty) == comparables(WANTED, {}) == ()


@pytest.mark.parametrize("name", ["Inversions", "Alignments", "Mixtures", "Offsets"])
def test_any_class_of_records_may_be_missing_or_alone(name: str) -> None:
    whole = everything()
    without = summarise(WANTED, {key: table for key, table in whole.items() if key != name})
    assert without.estimates
    alone = summarise(WANTED, {name: whole[name]})
    assert alone.verdicts
    comparables(WANTED, {name: whole[name]})
    few = summarise(WANTED, {**whole, name: whole[name].slice(0, 3)})
    assert few.verdicts
    if "flag" in whole[name].column_names:
        n, spoilt = len(whole[name]), with_column(whole[name], "flag", "not finite")
        found = summarise(WANTED, {**whole, name: spoilt})
        assert said(found, f"{n} of {n}", "do not count: not finite.")


def test_the_order_of_records_does_not_matter() -> None:
    whole = everything()
    order = {name: np.random.default_rng(3).permutation(len(table)) for name, table in whole.items()}
    shuffled = {name: table.take(order[name]) for name, table in whole.items()}
    a, b = summarise(WANTED, whole), summarise(WANTED, shuffled)
    assert [(e.quantity, dict(e.facets), e.n) for e in a.estimates] == [(e.quantity, dict(e.facets), e.n) for e in b.estimates]
    for one, other in zip(a.estimates, b.estimates, strict=True):
        for ours, theirs in ((one.value, other.value), (one.lo, other.lo), (one.hi, other.hi)):
            assert (ours is None) == (theirs is None)
            assert ours is None or ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    assert a.verdicts == b.verdicts


def test_without_an_instrument_no_scheme_is_chosen() -> None:
    rows = everything()
    bare = {name: table.select([c for c in table.column_names if "eye" not in c]) for name, table in rows.items()}
    found = summarise(WANTED, bare)
    assert said(found, "No instrument looked at the mixtures: name one under `embedders`, without which no scheme can be chosen.")
    assert told(found, "washout_n:none").value == 8
    assert [c.name for c in found.charts][:1] == ["sharpness"]
    gone = {**rows, "Mixtures": with_column(rows["Mixtures"], "flag", "constant")}
    assert said(summarise(WANTED, gone), "No mixture counts, without which")


def test_instruments_that_disagree_are_told() -> None:
    z = latents(32, OFFSET)
    rows = mixtures("cats", z, distance=lambda s, n: BASE + (0.0 if s == "fix" else 0.1))
    other = [{**row, "distance:ear": 1 - row["distance:eye"], "feature:ear": row["feature:eye"]} for row in rows]
    found = summarise(WANTED, records(Inversions=[inversions("cats", "images", z)], Mixtures=[other]))
    assert said(found, "The instruments do not agree on the scheme: fix by eye; ", "by ear.")
    assert said(found, "mix by fix")


def test_charts_are_few_and_can_be_drawn() -> None:
    found = summarise(WANTED, everything())
    names = [one.name for one in found.charts]
    assert names == ["distance", "sharpness", "kernel", "offset_gain", "law", "shared", "spectrum", "offsets"]
    colours = domains(found.charts)
    for one in found.charts:
        assert spec(one, colours)
        assert one.series is not None
        assert len({row[one.series.column] for row in (*one.rows, *one.curves)}) <= 8
    assert {row["scheme"] for row in chart(found, "distance").curves} == {"the images themselves", "fresh noise"}


def test_many_schemes_are_drawn_in_panels_by_what_is_set_apart() -> None:
    schemes = ("none", "fix", "nin", "slerp", "lol", "blend", "fix/global", "fix/channel", "nin/channel", "nin/lowpass")
    wanted = only(*schemes)
    z = latents(32, OFFSET)
    found = summarise(wanted, records(Inversions=[inversions("cats", "images", z)], Mixtures=[mixtures("cats", z, wanted=wanted)]))
    for name in ("distance", "sharpness", "kernel", "offset_gain"):
        one = chart(found, name)
        assert one.series is not None
        assert one.facet is not None
        assert list(dict.fromkeys(row["apart"] for row in one.rows)) == ["nothing", "a common mean", "channel means", "low frequencies"]
        assert len({row["norm"] for row in (*one.rows, *one.curves)}) <= 8
        assert spec(one, domains([one]))
    assert len(chart(found, "distance").rows) == len(schemes) * len(SIZES)
    assert len([c for c in chart(found, "distance").curves if c["norm"] == "the images themselves"]) == 2 * 4


def test_the_gallery_has_strips_the_worst_and_the_offsets() -> None:
    found = summarise(WANTED, everything())
    labels = [one.label for one in found.gallery]
    assert labels[:3] == ["cats", "cats: none", "cats: fix"]
    strip = found.gallery[2]
    assert list(strip.pictures) == ["N = 2", "N = 4", "N = 8", "N = 16"]
    assert strip.pictures["N = 16"] == "fix-16-0.webp"
    assert set(strip.numbers) == {"distance at N = 2", "distance at N = 16"}
    worst = next(one for one in found.gallery if one.label == "farthest from their group")
    assert all("N = 16" in name and ("fix" in name or "nin," in name) for name in list(worst.pictures)[:4])
    assert len(worst.pictures) == 6
    assert labels[-2:] == ["offset on the noise", "offset on the clean latent"]
    assert list(found.gallery[-1].pictures) == ["0", "0.4", "0.8"]


def test_two_runs_are_compared_image_by_image_and_draw_by_draw() -> None:
    found = comparables(WANTED, everything())
    errors = next(one for one in found if one.quantity == "reconstruction_pixels")
    assert (errors.per, errors.headline, errors.better) == ("image", True, "lower")
    assert errors.values["cats: cats images 0"] == 0.01
    assert errors.pictures["cats: cats images 2"] == {"": "2.webp"}
    heads = [one for one in found if one.quantity == "distance_over_n" and one.headline]
    assert [one.facets["scheme"] for one in heads] == ["nin/channel"]
    at = [one for one in found if one.quantity == "distance" and one.facets["scheme"] == "nin/channel"]
    assert [one.facets["n"] for one in at] == list(SIZES)
    name = "dogs, draw 3"
    assert heads[0].values[name] == pytest.approx(np.mean([one.values[name] for one in at]))
    assert heads[0].pictures["cats, draw 0"]["N = 16"] == "nin/channel-16-0.webp"
    assert list(next(one for one in found if one.quantity == "shared_total").values) == list(WANTED.groups)


def test_a_draw_that_lacks_a_size_is_not_compared_over_all() -> None:
    """The other run's mean would be one of other sizes."""
    z = latents(32, OFFSET)
    flag = lambda scheme, n, draw: "constant" if (n, draw) == (16, 5) else None  # noqa: E731
    rows = records(Inversions=[inversions("cats", "images", z)], Mixtures=[mixtures("cats", z, flag=flag)])
    over = next(one for one in comparables(WANTED, rows) if one.quantity == "distance_over_n")
    assert "cats, draw 5" not in over.values
    assert len(over.values) == WANTED.draws - 1


def test_the_settings_are_not_needed_for_groups_and_schemes_that_are_there() -> None:
    """What the records hold beyond the study is told after what it names."""
    bare = Wanted((), (), SIZES, (), 0.05, 12, 0.95)
    found = summarise(bare, study(distance=failing("fix", "nin")))
    assert told(found, "degeneration_n:fix").value == 16
    rows: list[Row] = mixtures("birds", latents(32, OFFSET))
    assert told(summarise(WANTED, records(Mixtures=[rows])), "distance:eye", scheme="fix", n=2).n == 12
