"""The semantic consistency score: closed forms, its interval, its law of variance, brute force, bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures import consistency
from diffprobe.measures.consistency import Spread, deviation, images_for, repetition_curve, repetitions_for, score, spread, typicality
from diffprobe.measures.similarity import mean_pairwise_cosine, semantic_consistency

Array = NDArray[np.float64]


def cloud(*shape: int, seed: int = 0, wide: float = 0.25) -> Array:
    """Embeddings about one direction; the mean cosine of the first axis' neighbours is about 1 / (1 + wide^2 D)."""
    x = wide * rng.stream("test.consistency", seed).standard_normal(shape)
    x[..., 0] += 1
    return x


def simplex(n: int) -> Array:
    return np.eye(n) - 1 / n


def alike(n: int, cosine: float) -> Array:
    """n unit vectors with this cosine between any two, and a free last axis."""
    return np.hstack([np.full((n, 1), math.sqrt(cosine)), math.sqrt(1 - cosine) * np.eye(n), np.zeros((n, 1))])


def pairs(x: Array) -> list[float]:
    return [float(a @ b / math.sqrt((a @ a) * (b @ b))) for a, b in itertools.combinations(np.asarray(x, np.float64), 2)]


@pytest.mark.parametrize(
    ("embeddings", "value", "clipped"),
    [
        (np.tile([3.0, 4.0, 0.1], (20, 1)), 100, 100),
        (np.eye(2), 0, 0),
        (np.eye(7), 0, 0),
        (np.array([[2.0, 1.0], [-4.0, -2.0]]), -100, 0),
        (simplex(5), -25, 0),
        (alike(6, 0.7), 70, 70),
        (np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), -100 / 3, 100 / 3),
    ],
)
def test_known_scores(embeddings: Array, value: float, clipped: float) -> None:
    found = score(embeddings)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert found.clipped == pytest.approx(clipped, abs=1e-12)
    assert semantic_consistency(torch.from_numpy(embeddings)).item() == pytest.approx(value, abs=1e-12)
    assert mean_pairwise_cosine(torch.from_numpy(embeddings)).item() == pytest.approx(value / 100, abs=1e-14)


def test_identical_images_score_exactly_100_without_width() -> None:
    for seed in range(20):
        x = np.tile(cloud(1, 33, seed=seed), (20, 1))
        assert score(x)[:4] == (100, 100, 100, 0)
        assert semantic_consistency(torch.from_numpy(x).float()).item() == 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_closed_form_is_the_loop(dtype: torch.dtype) -> None:
    x = torch.from_numpy(cloud(2, 3, 9, 5, wide=1)).to(dtype)
    found = mean_pairwise_cosine(x)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float64
    for index in np.ndindex(2, 3):
        cosines = pairs(x[index].double().numpy())
        single = score(x[index])
        assert found[index].item() == pytest.approx(np.mean(cosines), abs=1e-14)
        assert single.value == pytest.approx(100 * np.mean(cosines), abs=1e-12)
        assert single.clipped == pytest.approx(100 * np.mean(np.maximum(cosines, 0)), abs=1e-12)
        assert single.lowest_cosine == pytest.approx(min(cosines), abs=1e-14)


@pytest.mark.parametrize("n", [10, 20, 50])
def test_two_kinds_of_image_equally_many_leave_a_width(n: int) -> None:
    """All images are equally typical then, and the jackknife alone would be sure of a score that is half luck: 0 pairs or 1."""
    kinds = np.repeat(np.eye(2), n // 2, axis=0)
    found = score(kinds)
    exact = 100 * math.sqrt(2 * 0.25 / (n * (n - 1)))  # the law of two kinds with even odds: z1 = 0, z2 = 1/4
    assert found.se == pytest.approx(exact, rel=0.02)
    assert found.lo < 50 < found.hi


def test_a_set_does_not_depend_on_its_batch_nor_on_lengths_and_rotations() -> None:
    x = torch.from_numpy(cloud(300, 6, 80))
    whole = semantic_consistency(x)
    assert torch.equal(semantic_consistency(x[:0]), whole[:0])
    assert torch.allclose(torch.stack([semantic_consistency(part) for part in x]), whole, rtol=0, atol=1e-12)
    rotation = torch.linalg.qr(torch.from_numpy(cloud(80, 80, seed=1, wide=1)))[0]
    lengths = torch.linspace(1e-30, 1e30, 6, dtype=torch.float64)[:, None]
    assert torch.allclose(semantic_consistency(lengths * x @ rotation), whole, rtol=0, atol=1e-11)
    assert torch.allclose(semantic_consistency(x.flip(1)), whole, rtol=0, atol=1e-12)
    assert score(x[0] @ rotation) == pytest.approx(tuple(score(x[0])), abs=1e-11)


def test_numbers_at_the_edge_of_their_range_are_not_lost() -> None:
    for scale in (1e-310, 1e-200, 1e200, 1e307):
        assert semantic_consistency(torch.tensor([[scale, 0], [scale, scale]])).isnan().item()  # float32 cannot hold them
        assert semantic_consistency(torch.tensor([[scale, 0], [scale, scale]], dtype=torch.float64)).item() == pytest.approx(50 * 2**0.5)
        assert score([[scale, 0], [scale, scale]]).value == pytest.approx(50 * 2**0.5)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_an_embedding_that_is_not_valid_makes_its_set_nan(bad: float) -> None:
    x = cloud(3, 5, 4)
    x[1, 2] = bad
    found = semantic_consistency(torch.from_numpy(x))
    assert found.isnan().tolist() == [False, True, False]
    assert semantic_consistency(torch.from_numpy(x).float()).isnan().tolist() == [False, True, False]
    assert all(math.isnan(part) for part in score(x[1])[:-1])
    assert score(x[1]).n == 5
    assert np.isnan(typicality(x[1])).all()
    assert np.isnan(spread(x[1])).all()
    assert [math.isnan(row.mean) for row in repetition_curve(x, [2, 5], draws=3)] == [False, False, True, True, False, False]
    assert repetitions_for(1, x) == repetitions_for(1, x[[0, 2]])
    assert np.isnan(repetitions_for(1, x[1:2])).all()


def test_a_single_element_that_is_not_finite_is_seen() -> None:
    x = torch.from_numpy(cloud(4, 3))
    x[2, 1] = math.inf
    assert semantic_consistency(x).isnan()
    assert math.isnan(score(x).value)


@pytest.mark.parametrize(("n", "rho"), [(5, 0.2), (20, 0.0), (20, -0.5)])
def test_one_outlier_costs_what_it_must(n: int, rho: float) -> None:
    u = 0.8
    x = alike(n, u)
    x[-1] = 0
    x[-1, 0] = rho / math.sqrt(u)
    x[-1, -1] = math.sqrt(1 - rho**2 / u)
    assert score(alike(n, u)).value - score(x).value == pytest.approx(200 * (u - rho) / n)
    assert typicality(x).argmin() == n - 1


def test_the_interval_is_the_jackknifes_on_the_log_scale() -> None:
    x = cloud(12, 6)
    left_out = [100 * np.mean(pairs(np.delete(x, i, axis=0))) for i in range(12)]
    error = math.sqrt(11 / 12 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    found = score(x, level=0.9)
    assert found.se == pytest.approx(error, rel=1e-9)
    apart = 100 - found.value
    reach = ss.t.ppf(0.95, 11) * error / apart
    assert found.lo == pytest.approx(100 - apart * math.exp(reach))
    assert found.hi == pytest.approx(100 - apart * math.exp(-reach))


def test_nearly_identical_images_keep_their_digits() -> None:
    x, noise = np.tile([1.0, 0, 0, 0], (10, 1)), np.hstack([np.zeros((10, 1)), rng.stream("test.tiny").standard_normal((10, 3))])
    found = [score(x + size * noise).se for size in (1e-5, 1e-6, 1e-7)]
    assert found[0] == pytest.approx(100 * found[1], rel=1e-6)
    assert found[1] == pytest.approx(100 * found[2], rel=1e-6)


def test_the_interval_of_few_images() -> None:
    assert score(cloud(2, 4)).value == pytest.approx(100 * pairs(cloud(2, 4))[0])
    assert np.isnan(score(cloud(2, 4))[1:4]).all()
    assert np.isfinite(score(cloud(3, 4))).all()
    one_failure = np.vstack([np.tile([1.0, 0.0], (19, 1)), [[0.0, 1.0]]])
    found = score(one_failure)
    assert found.value == pytest.approx(90)
    assert 0 < found.lo < 80
    assert 95 < found.hi < 100


def test_no_limit_lies_below_0_unless_the_score_does() -> None:
    found = score(cloud(5, 40, wide=2))
    assert found.value > found.lo >= 0
    below = score(simplex(4) + 1e-3 * cloud(4, 4))
    assert below.lo == below.value < 0


def test_typicality_is_the_mean_cosine_to_the_others() -> None:
    x = cloud(7, 5)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = [(unit[i] @ unit.T).sum() / 6 - 1 / 6 for i in range(7)]
    assert typicality(x) == pytest.approx(expected)
    assert typicality(x).mean() == pytest.approx(score(x).value / 100)


def test_the_components_by_brute_force() -> None:
    x = cloud(6, 4, wide=0.6)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    c = 100 * unit @ unit.T
    apart = np.mean([c[i, j] * c[k, m] for i, j, k, m in itertools.permutations(range(6), 4)])
    shared = np.mean([c[i, j] * c[i, k] for i, j, k in itertools.permutations(range(6), 3)])
    square = np.mean([c[i, j] ** 2 for i, j in itertools.permutations(range(6), 2)])
    assert spread(x) == pytest.approx((shared - apart, square - apart), rel=1e-9)
    assert np.isnan(spread(x[:3])).all()


def test_the_law_of_variance_holds_without_bias() -> None:
    small = [spread(x) for x in cloud(4000, 6, 5)]
    law = Spread(*np.mean(small, axis=0))
    large = np.mean([spread(x) for x in cloud(300, 60, 5, seed=1)], axis=0)
    assert tuple(law) == pytest.approx(tuple(large), rel=0.12)
    for n in (3, 6, 20):
        scores = semantic_consistency(torch.from_numpy(cloud(8000, n, 5, seed=2 + n)))
        assert deviation(n, law) == pytest.approx(scores.std().item(), rel=0.05)


def test_the_score_is_unbiased_for_every_number_of_images() -> None:
    x = cloud(7, 5)
    for n in (2, 3, 6):
        subsets = [score(x[list(chosen)]).value for chosen in itertools.combinations(range(7), n)]
        assert np.mean(subsets) == pytest.approx(score(x).value, abs=1e-10)
    for row in repetition_curve([x], draws=4000):
        assert row.mean == pytest.approx(score(x).value, abs=5 * (row.hi - row.lo) / math.sqrt(4000) + 1e-9)


def test_the_curve_is_of_subsets() -> None:
    x = cloud(6, 5)
    rows = repetition_curve([x], draws=3000)
    assert [(row.prompt, row.n) for row in rows] == [(0, n) for n in range(2, 7)]
    every = [score(x[list(chosen)]).value for chosen in itertools.combinations(range(6), 3)]
    assert (rows[1].lo, rows[1].hi) == pytest.approx((min(every), max(every)))  # 20 subsets: 1 of them is 5 %
    assert rows[-1].lo == pytest.approx(rows[-1].hi)
    assert rows[-1].mean == pytest.approx(score(x).value)
    assert [row.sd for row in rows] == [deviation(n, spread(x)) for n in range(2, 7)]


def test_a_prompts_curve_depends_on_its_images_and_the_seed_alone() -> None:
    x, y = cloud(8, 5), cloud(6, 5, seed=1)
    both = repetition_curve([x, y], [3, 5, 8], seed=4)
    assert [(row.prompt, row.n) for row in both] == [(0, 3), (0, 5), (0, 8), (1, 3), (1, 5)]
    assert [row._replace(prompt=1) for row in repetition_curve([y], [3, 5], seed=4)] == [
        row._replace(prompt=1) for row in both if row.prompt == 1
    ]
    assert repetition_curve(torch.from_numpy(np.stack([x, x])), [3], seed=4)[1] == both[0]._replace(prompt=1)
    assert repetition_curve([x], [3], seed=5)[0] != both[0]


def test_the_images_for_a_half_width_are_the_fewest() -> None:
    law = Spread(8.0, 20.0)
    n = images_for(1.0, law)
    half = [ss.t.ppf(0.975, k - 1) * deviation(k, law) for k in (n - 1, n)]
    assert half[0] > 1 >= half[1]
    assert images_for(100, law) == 3
    assert images_for(0.01, Spread(-1.0, 0.0)) == 3
    assert images_for(0.001, law) == pytest.approx(4 * 8 * 1.96**2 * 1e6, rel=1e-3)


def test_the_planned_number_gives_the_wished_half_width() -> None:
    found = repetitions_for(2.0, cloud(60, 100, 6))
    new = [score(x) for x in cloud(400, round(found.value), 6, seed=1)]
    assert np.mean([(x.hi - x.lo) / 2 for x in new]) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("size", [8, 20])
def test_the_planned_number_is_covered_however_few_images_it_comes_from(size: int) -> None:
    """Prompts of one law: planned from many images of many prompts, and again and again from few."""
    truth = repetitions_for(1.0, cloud(300, 60, 6, seed=2)).value
    plans = [repetitions_for(1.0, cloud(60, size, 6, seed=3 + trial)) for trial in range(60)]
    assert np.mean([plan.value for plan in plans]) == pytest.approx(truth, rel=0.05)
    assert np.mean([plan.lo <= truth <= plan.hi for plan in plans]) > 0.87


def test_bad_input_is_refused() -> None:
    for embeddings in (cloud(1, 4), cloud(4), cloud(2, 3, 4)):
        with pytest.raises(ValueError, match=r"embeddings \[R, D\] of 2 images or more"):
            score(embeddings)
    for tensor in (torch.ones(1, 4), torch.ones(3, 1, 4), torch.ones(4), torch.ones(2, 3, 0)):
        with pytest.raises(ValueError, match="R >= 2"):
            semantic_consistency(tensor)
    with pytest.raises(ValueError, match="leave \\[1\\] out"):
        repetition_curve([cloud(4, 3)], [1, 2])
    with pytest.raises(ValueError, match="half-width > 0"):
        images_for(0, Spread(1.0, 1.0))
    with pytest.raises(ValueError, match="finite components"):
        images_for(1, consistency.Spread(math.nan, 1.0))
