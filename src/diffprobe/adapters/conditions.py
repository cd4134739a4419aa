"""What prompts say to a network: one row a sample, every distinct prompt encoded once by the pipeline's own text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TextCondition:
    """Text `states` [B, tokens, width] and their `pooled` sum [B, width], for networks that take both; one row a sample."""

    states: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> TextCondition:
        """The rows of a slice or of indices, in their order."""
        return TextCondition(self.states[rows], self.pooled[rows])

    def with_states(self, states: Tensor) -> TextCondition:
        """The same pooled text with other states [B, tokens, width]."""
        return replace(self, states=states)

    def expand(self, count: int) -> TextCondition:
        """One row as `count` of them, without a copy; `count` rows as they are. Raises RuntimeError for any other number of rows."""
        return TextCondition(self.states.expand(count, -1, -1), self.pooled.expand(count, -1))


C = TypeVar("C", Tensor, TextCondition)


def text_states(pipe: Any) -> Callable[[Sequence[str]], Tensor]:
    """Stable Diffusion 1 and 2: the text encoder's states [B, tokens, width]."""

    def encode(prompts: list[str]) -> Tensor:
        states: Tensor = pipe.encode_prompt(prompts, pipe.device, 1, do_classifier_free_guidance=False)[0]
        return states

    return lambda prompts: _expanded(encode, prompts)


def text_and_pooled(pipe: Any, texts: int) -> Callable[[Sequence[str]], TextCondition]:
    """Stable Diffusion XL (a prompt for each of two `texts` encoders) and 3 (three): their joined states, and what they pool.

    An encoder beyond the first gets the same prompt, as where a user gives one prompt.
    """

    def encode(prompts: list[str]) -> TextCondition:
        others = {f"prompt_{number}": None for number in range(2, texts + 1)}
        states, _, pooled, _ = pipe.encode_prompt(prompts, **others, device=pipe.device, do_classifier_free_guidance=False)
        return TextCondition(states, pooled)

    return lambda prompts: _expanded(encode, prompts)


def no_text(pipe: Any, condition: Callable[[Sequence[str]], TextCondition]) -> Callable[[], TextCondition]:
    """What the deployed pipeline guides away from where no negative prompt is given: the empty prompt, or zeros where it is set to."""

    def encode() -> TextCondition:
        empty = condition([""])
        if not pipe.config.get("force_zeros_for_empty_prompt"):
            return empty
        return TextCondition(torch.zeros_like(empty.states), torch.zeros_like(empty.pooled))

    return encode


@torch.no_grad()
def _expanded(encode: Callable[[list[str]], C], prompts: Sequence[str]) -> C:
    """The rows of all prompts, each distinct one encoded once."""
    places = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    found = encode(list(places))
    return found if len(places) == len(prompts) else found[torch.tensor([places[prompt] for prompt in prompts])]
