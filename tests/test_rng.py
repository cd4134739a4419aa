"""Noise by address: nothing but role and seed decides it."""

import numpy as np
import pytest
import torch

from diffprobe import rng

GOLDEN = [986034328, 325669500, 290034805]
GOLDEN_NORMAL = [-1.245922, 0.5094305, -0.5514399]


def test_the_noise_of_a_seed_is_the_same_in_any_batch_and_order() -> None:
    together = rng.normal((3, 4), "role", [5, 17, 2])
    assert torch.equal(together[1:2], rng.normal((3, 4), "role", [17]))
    assert torch.equal(together.flip(0), rng.normal((3, 4), "role", [2, 17, 5]))


def test_drawing_elsewhere_changes_nothing() -> None:
    alone = rng.stream("role", 1).standard_normal(8)
    first, other = rng.stream("role", 1), rng.stream("other", 1)
    halves = [first.standard_normal(4)]
    other.standard_normal(1000)
    halves.append(first.standard_normal(4))
    np.testing.assert_array_equal(np.concatenate(halves), alone)


@pytest.mark.parametrize("address", [("other", 1), ("role", 2), ("role", 1, 1), ("role",), ("role", -1)])
def test_every_part_of_an_address_counts(address: tuple[str, *tuple[int, ...]]) -> None:
    role, *seed = address
    base, moved = rng.stream("role", 1).standard_normal(4096), rng.stream(role, *seed).standard_normal(4096)
    assert abs(np.corrcoef(base, moved)[0, 1]) < 0.08  # five standard errors


def test_the_noise_of_two_seeds_is_not_that_of_one_cut_in_two() -> None:
    assert not torch.equal(rng.normal((4,), "role", [0, 1]).flatten(), rng.normal((8,), "role", [0]).flatten())


def test_the_noise_is_standard_normal() -> None:
    noise = rng.normal((50_000,), "moments", range(4)).double()
    n = noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=5 * n**-0.5)
    assert noise.square().mean().item() == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert noise.pow(3).mean().item() == pytest.approx(0, abs=5 * (15 / n) ** 0.5)
    assert noise.pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / n) ** 0.5)


def test_the_streams_are_those_of_every_other_machine() -> None:
    """Golden values: a change of the address or of the generator would unpair all runs made before it."""
    assert rng.stream("golden", 1, 2).integers(1 << 30, size=3).tolist() == GOLDEN
    np.testing.assert_allclose(rng.normal((3,), "golden", [7])[0], GOLDEN_NORMAL, rtol=1e-6)


def test_no_seed_gives_no_row() -> None:
    noise = rng.normal((2, 3), "role", [])
    assert noise.shape == (0, 2, 3)
    assert noise.dtype == torch.float32


def test_a_pipelines_generator_is_the_fields_own() -> None:
    ours = torch.randn(3, generator=rng.generators([11])[0])
    assert torch.equal(ours, torch.randn(3, generator=torch.Generator().manual_seed(11)))


def test_the_global_generators_are_left_alone() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    rng.normal((8,), "role", [1])
    rng.generators([1])
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
