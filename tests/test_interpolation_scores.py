"""Intervals of what the interpolation probe concludes, in simulation, and the scores of mixtures by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats as ss

from diffprobe.measures.interpolation import alignment, misalignment
from diffprobe.measures.sets import frechet_interval, kernel_interval
from diffprobe.measures.stats import Interval, holm
from diffprobe.probes.interpolation.likeness import own_distances
from diffprobe.probes.interpolation.scores import scored
from diffprobe.probes.interpolation.strata import Pairs, averaged, jackknifed, pairs_of, stratified
from diffprobe.probes.interpolation.summary import summarise
from diffprobe.probes.interpolation.tables import column, frame
from tests.interpolation_records import (
    BASE,
    OFFSET,
    SCHEMES,
    SHAPE,
    SIZES,
    WANTED,
    Matrix,
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


def holds(interval: Interval, truth: float) -> bool:
    return interval.lo <= truth <= interval.hi


def test_a_mean_over_strata_is_students_of_one_and_welchs_of_two() -> None:
    x, y = noise(9), 3 * noise(14, seed=1) + 2
    one = stratified([x], 0.95)
    assert one.interval == pytest.approx((x.mean(), *ss.t.interval(0.95, 8, x.mean(), ss.sem(x))))
    assert one.p == pytest.approx(ss.ttest_1samp(x, 0).pvalue)
    assert stratified([x, -y], 0.95).p == pytest.approx(ss.ttest_ind(x, y, equal_var=False).pvalue)
    assert stratified([x, y], 0.95, [3.0, 1.0]).interval.value == pytest.approx((3 * x.mean() + y.mean()) / 4)
    assert (one.n, stratified([x, y], 0.95).n) == (9, 23)
    alone = stratified([x, y[:1]], 0.95)
    assert math.isnan(alone.interval.lo)
    assert math.isnan(alone.p)
    assert stratified([np.zeros(3)], 0.95).interval == (0, 0, 0)
    assert math.isnan(stratified([], 0.95).interval.value)


@pytest.mark.parametrize(("skew", "lowest"), [(None, 0.93), (3.0, 0.91), (1.0, 0.88)])
def test_the_interval_of_draws_covers_their_mean(skew: float | None, lowest: float) -> None:
    generator = np.random.default_rng(0)

    def draw(size: int) -> Matrix:
        return generator.standard_normal(size) if skew is None else generator.gamma(skew, size=size) - skew

    rate = np.mean([holds(stratified([draw(8), 2 * draw(12)], 0.95).interval, 0) for _ in range(1000)])
    assert lowest < rate < 0.97


def test_the_mean_of_kernel_distances_covers() -> None:
    generator = np.random.default_rng(1)

    def sets(n: int, m: int) -> tuple[Matrix, Matrix]:
        return 1 + 0.3 * generator.standard_normal((n, 4)) + np.eye(4)[0] * 0.5, 1 + 0.3 * generator.standard_normal((m, 4))

    truth = kernel_interval(*sets(4000, 4000)).value
    rate = np.mean([holds(averaged([Interval(*kernel_interval(*sets(16, 40))[:3]) for _ in range(2)]), truth) for _ in range(200)])
    assert 0.89 < rate < 0.99


def test_leaving_one_out_of_pairs_is_done_by_hand_once() -> None:
    z = noise(5, 7)
    gram = z @ z.T
    found = pairs_of([gram])
    rest = np.delete(np.delete(gram, 2, 0), 2, 1)
    assert found.mean[0] == pytest.approx((gram.sum() - np.trace(gram)) / 20)
    assert found.without[2, 0] == pytest.approx((rest.sum() - np.trace(rest)) / 12)
    with pytest.raises(ValueError, match="three units"):
        pairs_of([gram[:2, :2]])


def test_the_jackknife_over_strata_is_the_measures_own_for_one_group() -> None:
    found = alignment(latents(20, OFFSET))
    whole = misalignment(found).total
    ours = jackknifed([pairs_of([found.gram / found.size])], lambda means: np.asarray(means[..., 0].mean(-1)), 0.95)
    assert ours.value == pytest.approx(whole.value)
    assert math.isnan(jackknifed([Pairs(np.array([math.nan]), np.zeros((3, 1)))], lambda m: np.asarray(m[..., 0].mean(-1)), 0.95).value)


def test_the_share_of_channel_means_covers_its_truth() -> None:
    """A channel offset and a pattern without mean: 0.57 of what is shared lies in channel means."""
    generator = np.random.default_rng(2)
    area, size = SHAPE[1] * SHAPE[2], int(np.prod(SHAPE))
    pattern = np.linspace(-0.16, 0.16, 16)[None, None, :].repeat(4, 0)  # along rows: no channel mean
    truth = float((OFFSET**2).mean() / ((OFFSET**2).mean() + (pattern**2).mean()))
    hits, values = [], []
    for _ in range(150):
        strata = []
        for _ in range(2):
            means = OFFSET + generator.standard_normal((24, 4)) / math.sqrt(area)
            rest = generator.standard_normal((24, size - 4))
            rest[:, 0] += math.sqrt(size * (pattern**2).mean())
            channel = area / size * means @ means.T
            strata.append(pairs_of([channel + rest @ rest.T / size, channel]))
        found = jackknifed(strata, lambda m: np.asarray(m[..., 1].mean(-1) / m[..., 0].mean(-1)), 0.95)
        hits.append(holds(found, truth))
        values.append(found.value)
    assert np.mean(hits) > 0.94
    assert np.median(values) == pytest.approx(truth, abs=0.05)


def test_schemes_pair_by_draw_and_holm_is_over_a_named_family() -> None:
    """What all schemes share of a draw's luck, four times what each has of its own, is gone from differences."""
    found = summarise(WANTED, study(distance=lambda scheme, n: BASE + 0.01 * (scheme == "fix")))
    one = told(found, "distance:eye", scheme="nin", n=8)
    gap = told(found, "distance_difference:eye", scheme="fix", n=8)
    assert gap.facets["family"] == f"against {gap.facets['than']}"
    assert gap.value == pytest.approx(0.01, abs=0.006)
    assert one.n == gap.n == 24
    assert None not in (one.lo, one.hi, gap.lo, gap.hi)
    assert (gap.hi or 0) - (gap.lo or 0) < 0.6 * ((one.hi or 0) - (one.lo or 0))
    pairs = [e for e in found.estimates if e.facets.get("family") == "pairs over all N"]
    assert len(pairs) == 6
    assert all(e.facets["p_adjusted"] == 1 or float(e.facets["p_adjusted"]) > 0 for e in pairs)
    contests = [e for e in found.estimates if e.quantity == "distance_difference:eye" and "n" in e.facets]
    assert len(contests) == 3 * len(SIZES)


def test_holms_correction_is_that_of_the_raw_p_values() -> None:
    table = frame(study(distance=lambda scheme, n: BASE + 0.002 * SCHEMES.index(scheme)), "Mixtures")
    one = scored(table, column(table, "distance:eye"), WANTED)
    pairs = one.pairs()
    assert [pair.p_adjusted for pair in pairs] == pytest.approx(holm([pair.found.p for pair in pairs]).tolist())
    first = pairs[0]
    wide = table.pivot_table(index=["group", "draw"], columns=["scheme", "n"], values="distance:eye")
    by_draw = (wide["none"] - wide["fix"]).mean(axis=1)
    assert first.found == stratified([part.to_numpy() for _, part in by_draw.groupby(level="group")], 0.95)
    assert one.average("nin").interval.value == pytest.approx(wide["nin"].mean(axis=1).mean())


@pytest.mark.parametrize(("kept", "n"), [(4, 24), (9, 18)])
def test_a_size_that_most_draws_lack_is_left_out_of_means_over_all(kept: int, n: int) -> None:
    """Rather than the draws that lack it, which go where it is few of them."""
    flag = lambda scheme, n, draw: "constant" if (scheme, n) == ("fix", 16) and draw >= kept else None  # noqa: E731
    found = summarise(WANTED, study(flag=flag, distance=lambda scheme, n: BASE + (n == 16)))
    over = told(found, "distance_over_n:eye", scheme="fix")
    assert over.n == n
    assert over.value == pytest.approx(BASE + (0 if kept == 4 else 1 / 4), abs=0.02)


def test_the_images_own_distance_leaves_each_out() -> None:
    assert own_distances(np.eye(3)) == pytest.approx([1.0] * 3)
    assert own_distances(np.array([[2.0, 0], [1.0, 1.0]])) == pytest.approx([1 - 0.5**0.5] * 2)
    assert math.isnan(own_distances(np.eye(2)[:1])[0])
    found = summarise(WANTED, study())
    assert told(found, "distance_originals:eye").n == 64


def test_set_distances_are_means_over_groups() -> None:
    rows = study()
    found = summarise(WANTED, rows)
    images, drawn = (frame(rows, name) for name in ("Inversions", "Mixtures"))
    own = drawn[(drawn["scheme"] == "fix") & (drawn["n"] == 4)]

    def features(table: Any, group: str) -> Matrix:
        return np.stack(list(table[table["group"] == group]["feature:eye"]))

    each = [kernel_interval(features(own, group), features(images, group)) for group in WANTED.groups]
    kernel = told(found, "kernel:eye", scheme="fix", n=4)
    assert kernel.value == pytest.approx(np.mean([one.value for one in each]))
    assert kernel.n == 24
    limit = told(found, "frechet:eye", scheme="fix", n=4)
    assert limit.value is None
    assert limit.reason is not None
    assert limit.reason.startswith("12 rows are too few to extrapolate in 3 dimensions")
    assert told(found, "frechet_plain:eye", scheme="fix", n=4).value is not None


def test_the_frechet_distance_has_its_limit_where_draws_are_enough() -> None:
    from diffprobe.measures.sets import Moments

    wanted = replace(only("fix", "nin"), draws=40, groups=("cats",))
    z = latents(32, OFFSET)
    rows = records(Inversions=[inversions("cats", "images", z)], Mixtures=[mixtures("cats", z, wanted=wanted)])
    found = told(summarise(wanted, rows), "frechet:eye", scheme="nin", n=2)
    drawn, images = frame(rows, "Mixtures"), frame(rows, "Inversions")
    own = np.stack(list(drawn[(drawn["scheme"] == "nin") & (drawn["n"] == 2)]["feature:eye"]))
    expected = frechet_interval(own, Moments().update(np.stack(list(images["feature:eye"]))))
    assert (found.value, found.lo, found.hi) == pytest.approx(expected[:3])


def test_draws_that_are_one_and_the_same_have_no_limits() -> None:
    """A centroid of the whole pool is one picture, however many draws."""
    wanted = only("fix", "nin", sizes=(2, 4, 8))
    z = {group: latents(8, OFFSET, seed) for seed, group in enumerate(wanted.groups)}
    found = summarise(
        wanted,
        records(
            Inversions=[inversions(group, "images", one) for group, one in z.items()],
            Mixtures=[mixtures(group, one, wanted=wanted) for group, one in z.items()],
        ),
    )
    assert told(found, "distance:eye", scheme="fix", n=4).lo is not None
    whole = told(found, "distance:eye", scheme="fix", n=8)
    assert (whole.lo, whole.hi) == (None, None)
    assert told(found, "kernel:eye", scheme="fix", n=8).lo is None
    assert said(found, "At N = 8 and more, mixtures of 8 images have more than half of them in common", "a pool of 16 would say more")


def test_the_common_offset_is_counted_in_that_of_the_images() -> None:
    """Plain averaging and channel means keep it, fix and nin multiply it by the law."""
    found = summarise(WANTED, study())
    for scheme, n, expected in (("none", 16, 1.0), ("nin/channel", 16, 1.0), ("fix", 2, 1.4), ("fix", 16, 3.83), ("nin", 16, 3.83)):
        assert told(found, "offset_gain", scheme=scheme, n=n).value == pytest.approx(expected, rel=0.06)


def test_two_kinds_and_origins_are_told_apart() -> None:
    z = latents(32, OFFSET)
    rows = [
        *mixtures("cats", z),
        *mixtures("cats", z, kind="random", distance=lambda s, n: 0.5),
        *mixtures("cats", z, origin="generated", distance=failing("fix")),
    ]
    found = summarise(WANTED, records(Inversions=[inversions("cats", "images", z)], Mixtures=[rows]))
    assert told(found, "distance:eye", scheme="fix", n=2, kind="random").value == pytest.approx(0.5, abs=0.02)
    assert told(found, "distance:eye", scheme="fix", n=2, kind="centroid", origin="images").value == pytest.approx(0.2, abs=0.02)
    assert told(found, "degeneration_n:fix").value is None
    assert not said(found, "Mixtures of the model's own images")


@pytest.mark.parametrize(("own", "sentence"), [(("fix",), "degenerate too"), ((), "do not surely degenerate")])
def test_the_control_of_generated_images_is_told(own: tuple[str, ...], sentence: str) -> None:
    z = latents(32, OFFSET)
    rows = [*mixtures("cats", z, distance=failing("fix")), *mixtures("cats", z, origin="generated", distance=failing(*own))]
    found = summarise(WANTED, records(Inversions=[inversions("cats", "images", z)], Mixtures=[rows]))
    assert said(found, f"Mixtures of the model's own images, inverted, {sentence}: the distance at N = 16 is", "over N = 2 by fix")
