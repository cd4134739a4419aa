"""What the interpolation probe says of what latents share, of inversion and of offsets, from records whose truth is known."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from diffprobe.probes.interpolation.bias import PARTS, shared
from diffprobe.probes.interpolation.evidence import Evidence
from diffprobe.probes.interpolation.summary import summarise
from tests.interpolation_records import (
    OFFSET,
    SIZES,
    WANTED,
    alignments,
    chart,
    inversions,
    latents,
    noise,
    offsets,
    records,
    said,
    told,
    with_column,
)


def pooled(**parts: Any) -> dict[str, Any]:
    """Latents by origin, of two groups, with their alignments."""
    found = {(group, origin): z for origin, make in parts.items() for group, z in zip(WANTED.groups, make, strict=True)}
    return records(
        Inversions=[inversions(group, origin, z) for (group, origin), z in found.items()],
        Alignments=[alignments(group, origin, z) for (group, origin), z in found.items()],
    )


def pair(count: int, offset: Any, seed: int) -> list[Any]:
    return [latents(count, offset, seed), latents(count, offset, seed + 100)]


def test_shares_of_the_shared_power_find_their_truth() -> None:
    """Twice as large as in other tests, all of it in channel means; of these 0.043² / mean d² is common to all channels."""
    rows = pooled(images=pair(64, 2 * OFFSET, 0))
    found = summarise(WANTED, rows)
    total = told(found, "shared_total", origin="images")
    truth = float(((2 * OFFSET) ** 2).mean())
    assert total.n == 128
    assert (total.lo or 0) < truth < (total.hi or 0)
    share = told(found, "share_channel", origin="images")
    assert (share.lo or 0) <= 1 <= (share.hi or 0)
    common = told(found, "share_global", origin="images")
    assert (common.lo or 0) < float((2 * OFFSET).mean() ** 2) / truth < (common.hi or 0)
    assert told(found, "power", origin="images").value == pytest.approx(1 + truth, abs=0.01)
    assert told(found, "shared_total", origin="images", group="cats").n == 64
    assert said(found, "Inverted images share b² = 0.02", "of it lies in channel means", "in the lowest frequencies, these included")


def test_of_latents_that_share_nothing_no_shares_are_told() -> None:
    found = summarise(WANTED, pooled(images=pair(24, 0.0, 0)))
    for part in (*PARTS, "leak"):
        share = told(found, f"share_{part}", origin="images")
        assert (share.value, share.reason) == (None, "the latents surely share nothing that could be parted")
    assert said(found, "Inverted images share no power that 48 of them show: b² is")
    assert not said(found, "the law")


def test_the_leak_is_foretold_by_the_path_and_matched_by_name() -> None:
    """Rows of inversions may come in another order than those of alignments."""
    z = latents(32, 2 * OFFSET)
    rows = inversions("cats", "images", z, leak=lambda i: [0.01 * i] * 4)
    table = records(Inversions=[rows[::-1]], Alignments=[alignments("cats", "images", z)])
    found = Evidence(WANTED, table)
    (pool,) = found.pools
    assert list(pool.rows["image"]) == [f"cats images {i}" for i in range(32)]
    products = np.outer(0.01 * np.arange(32), 0.01 * np.arange(32))
    expected = (products.sum() - np.trace(products)) / (32 * 31)
    assert told(summarise(WANTED, table), "shared_leak", origin="images", group="cats").value == pytest.approx(expected)
    (part,) = shared(found.pools, 0.95)
    assert part.shares["leak"].value == pytest.approx(expected / part.mean.total.value)


@pytest.mark.parametrize(
    ("offset", "count", "sentence"),
    [
        (2 * OFFSET, 48, "no less than real images do: it is that way that adds it."),
        (0.7 * OFFSET, 48, "that way adds as much, and the rest is the images' own."),
        (0.0, 48, "that way adds nothing that 96 of them show."),
    ],
)
def test_what_inversion_adds_is_told_by_the_models_own_images(offset: Any, count: int, sentence: str) -> None:
    found = summarise(WANTED, pooled(images=pair(48, 2 * OFFSET, 0), generated=pair(count, offset, 7)))
    assert said(found, "Images that the model drew itself, of independent noise, come back from encoding and inversion with b² =", sentence)


def test_a_control_that_is_too_small_is_told_to_be() -> None:
    found = summarise(WANTED, pooled(images=pair(4, OFFSET, 0), generated=pair(4, 0.7 * OFFSET, 7)))
    assert said(found, "8 of them do not tell its part.")


@pytest.mark.parametrize(
    ("alpha", "offset", "sentence"),
    [
        (0.0, None, "The noisiest level is pure noise (α = 0): nothing of an image is left in it."),
        (0.05, None, "is seen where images are noised forwards (origin `noised`)."),
        (0.05, 2 * OFFSET, "by noise alone, without inversion, latents share b² = 0.02"),
        (0.05, 0.0, "which makes latents share nothing that 96 of them show"),
    ],
)
def test_what_the_last_level_leaves_is_told(alpha: float, offset: Any, sentence: str) -> None:
    rows = pooled(images=pair(48, 2 * OFFSET, 0), **({} if offset is None else {"noised": pair(48, offset, 7)}))
    assert said(summarise(WANTED, {**rows, "Inversions": with_column(rows["Inversions"], "alpha_T", alpha)}), sentence)


def test_the_law_is_told_where_it_holds_and_where_it_does_not() -> None:
    """An offset of half the images and its opposite for the others grows by no law."""
    found = summarise(WANTED, pooled(images=pair(48, 2 * OFFSET, 0)))
    assert said(found, "the channel means of centroids of 2 to 16 latents grow by the law", "with nothing fitted (R² 1.00")
    assert told(found, "law_r2_foretold", group="cats", channel=3).value == pytest.approx(1, abs=0.02)
    assert told(found, "law_offset", group="cats", channel=3).value == pytest.approx(2 * OFFSET[3], abs=0.03)
    law = chart(found, "law")
    assert len(law.rows) == len(law.curves) == 2 * 4 * len(SIZES)
    rows = pooled(images=pair(48, 2 * OFFSET, 0))
    table = rows["Alignments"].to_pandas()
    odd = [
        {**row, "channel_mean": [(-1) ** place * 9e-4 * v for v in row["channel_mean"]]}
        for place, row in enumerate(table.to_dict("records"))
    ]
    assert said(summarise(WANTED, {**rows, **records(Alignments=[odd])}), "does not foretell", "everywhere")


def test_an_alignment_with_rows_missing_is_left_out() -> None:
    z = latents(8, OFFSET)
    rows = records(Inversions=[inversions("cats", "images", z)], Alignments=[alignments("cats", "images", z)[:-1]])
    found = summarise(WANTED, rows)
    assert not [e for e in found.estimates if e.quantity.startswith(("shared", "share_", "law"))]
    few = latents(2, OFFSET)
    rows = records(Inversions=[inversions("cats", "images", few)], Alignments=[alignments("cats", "images", few)])
    assert not [e for e in summarise(WANTED, rows).estimates if e.quantity.startswith("shared")]


def test_the_error_of_inversion_is_a_mean_over_groups_and_its_card() -> None:
    parts = [
        inversions("cats", "images", latents(6), reconstruction=0.3, reconstruction_pixels=lambda i: 0.01 * (i + 1)),
        inversions("dogs", "images", latents(6, seed=1), reconstruction=lambda i: 0.1 if i < 3 else None, reconstruction_pixels=0.02),
    ]
    found = summarise(WANTED, records(Inversions=parts))
    assert told(found, "reconstruction", origin="images").value == pytest.approx(0.2)
    assert told(found, "reconstruction", origin="images").n == 9
    assert told(found, "reconstruction_pixels", origin="images", group="cats").value == pytest.approx(0.035)
    assert told(found, "inversion_error").value == pytest.approx(0.0275)
    assert said(found, "Inverted and drawn again, 12 images come back with a mean squared error of 0.0275", "(of the latents: 0.2 [")


def test_pure_noise_is_not_betrayed_and_offset_smooth_latents_are() -> None:
    clean = summarise(WANTED, records(Inversions=[inversions("cats", "images", latents(40))]))
    assert said(clean, "Nothing that is looked at betrays an inverted image")
    wave = torch.cos(torch.arange(16) * math.tau / 16)
    found = summarise(WANTED, records(Inversions=[inversions("cats", "images", latents(40) + 0.8 * wave + 0.3)]))
    assert said(found, "betrayed by its latent: power in the lowest frequencies 21", "correlation of neighbours 0.22", "length 1.19")
    mean = told(found, "latent_channel_mean", origin="images", channel=0)
    assert mean.facets["noise_scatter"] == pytest.approx(1 / 16)
    assert (mean.lo or 0) < 0.3 < (mean.hi or 0)
    assert (told(found, "latent_spectrum", origin="images", band=0).value or 0) > 2


def test_the_same_offset_is_compared_seed_by_seed() -> None:
    found = summarise(WANTED, records(Offsets=[offsets(group, {"noise": 0.5, "data": 0.1}) for group in WANTED.groups]))
    gap = told(found, "offset_difference_distance:eye", offset=0.8)
    factor = 1 + 0.1 * np.mean([float(noise(1, seed=seed)[0]) for seed in range(10)])
    assert gap.value == pytest.approx(0.8 * 0.4 * factor)
    assert gap.n == 20
    assert told(found, "offset_distance:eye", at="noise", offset=0.4).value == pytest.approx(0.4 * 0.5 * factor)
    assert said(
        found,
        "The same offset of 0.8 moves a picture by 0.399 [",
        "on the noise and by 0.0798 [",
        "(cosine distance, eye): a difference of +0.3",
    )
    assert {row["offset"] for row in chart(found, "offsets").rows} == {0.4, 0.8}
    assert next(c for c in found.cards if c.title == "an offset on the noise").estimate.n == 20


def test_without_an_instrument_offsets_are_told_by_what_moves_elsewhere() -> None:
    rows = [{k: v for k, v in row.items() if k != "distance:eye"} for row in offsets("cats", {"noise": 0.5, "data": 0.1}, (0.4,))]
    found = summarise(WANTED, records(Offsets=[rows]))
    assert said(found, "(mean squared change outside its place)")
    drawn = chart(found, "offsets")
    assert drawn.kind == "interval"
    assert {row["offset"] for row in drawn.rows} == {"0.4"}
    assert drawn.y.title == "mean squared change outside the offset's place"


def test_a_difference_of_offsets_that_is_not_sure_is_said_to_be() -> None:
    rows = offsets("cats", {"noise": 0.2, "data": 0.2}, (0.4,), seeds=6)
    for place, row in enumerate(rows):
        row["distance:eye"] = float(noise(1, seed=place)[0])
    assert said(summarise(WANTED, records(Offsets=[rows])), "a difference of", "which is not sure.")
