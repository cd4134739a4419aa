"""The margin of a classifier."""

from __future__ import annotations

import math

import pytest
import torch

from diffprobe.measures.sets.classification import classification_margin

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 3.0], [-4.0, -2.0, -7.0]])


def test_it_is_a_difference_of_logits() -> None:
    assert classification_margin(LOGITS).tolist() == [1.5, 0, 2]
    assert classification_margin(LOGITS, torch.tensor([2, 1, 0])).tolist() == [-1.5, 0, -2]


def test_it_is_a_ratio_of_probabilities() -> None:
    p = LOGITS.double().softmax(1)
    assert classification_margin(LOGITS)[0].item() == pytest.approx(math.log(p[0, 0] / p[0, 2]))
    assert torch.allclose(classification_margin(LOGITS + 5), classification_margin(LOGITS))
    assert torch.allclose(classification_margin(LOGITS.log_softmax(1)), classification_margin(LOGITS), atol=1e-6)


def test_the_true_class_has_the_top_margin_where_it_is_right() -> None:
    right = classification_margin(LOGITS, LOGITS.argmax(1))
    assert torch.equal(right, classification_margin(LOGITS))
    assert right.dtype == torch.float64
    assert classification_margin(LOGITS[:0], torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_sure_networks_lose_no_digits() -> None:
    """By probabilities, both of these would be log 1 over log 0."""
    assert classification_margin(torch.tensor([[900.0, 0, -5]])).item() == 900
    assert classification_margin(torch.tensor([[60.0, 20]]).bfloat16(), torch.tensor([1], dtype=torch.int32)).item() == -40


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="two classes or more"):
        classification_margin(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="float logits"):
        classification_margin(torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="1 of 3 rows of logits hold nan or inf"):
        classification_margin(LOGITS.masked_fill(LOGITS == 2, math.nan))
    with pytest.raises(ValueError, match=r"class numbers \[3\]"):
        classification_margin(LOGITS, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="from 0 to 2: map them"):
        classification_margin(LOGITS, torch.tensor([0, 1, 3]))
