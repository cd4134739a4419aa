"""What prompts say to a network: one row a sample, every distinct prompt encoded once by the pipeline's own text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TextCondition:
    """Text `states` [B, tokens, width] and what a network takes beside them, one row a sample.

    `pooled` is the text's sum [B, width]. `mask` [B, tokens] says which tokens count, or [B, 1, tokens] what is added to their logits.
    `picture` [B, C, h, w] is an image to be edited.
    """

    states: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    picture: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> TextCondition:
        """The rows of a slice or of indices, in their order."""
        return self.each(lambda part: part[rows])

    def with_states(self, states: Tensor) -> TextCondition:
        """The same with other states [B, tokens, width]."""
        return replace(self, states=states)

    def expand(self, count: int) -> TextCondition:
        """One row as `count` of them, without a copy; `count` rows as they are. Raises RuntimeError for any other number of rows."""
        return self.each(lambda part: part.expand(count, *part.shape[1:]))

    def each(self, change: Callable[[Tensor], Tensor]) -> TextCondition:
        """The condition with every part that it has changed."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(part) for name, part in parts.items() if part is not None})


C = TypeVar("C", Tensor, TextCondition)


def text_states(pipe: Any) -> Callable[[Sequence[str]], Tensor]:
    """Stable Diffusion 1 and 2: the text encoder's states [B, tokens, width]."""

    def encode(prompts: list[str]) -> Tensor:
        states: Tensor = pipe.encode_prompt(prompts, pipe._execution_device, 1, do_classifier_free_guidance=False)[0]
        return states

    return lambda prompts: expanded(encode, prompts)


def text_and_pooled(pipe: Any, texts: int) -> Callable[[Sequence[str]], TextCondition]:
    """Stable Diffusion XL (a prompt for each of two `texts` encoders) and 3 (three): their joined states, and what they pool.

    An encoder beyond the first gets the same prompt, as where a user gives one prompt.
    """

    def encode(prompts: list[str]) -> TextCondition:
        others = {f"prompt_{number}": None for number in range(2, texts + 1)}
        states, _, pooled, _ = pipe.encode_prompt(prompts, **others, device=pipe._execution_device, do_classifier_free_guidance=False)
        return TextCondition(states, pooled)

    return lambda prompts: expanded(encode, prompts)


def no_text(pipe: Any, condition: Callable[[Sequence[str]], TextCondition]) -> Callable[[], TextCondition]:
    """What the deployed pipeline guides away from where no negative prompt is given: the empty prompt, or zeros where it is set to."""
    return lambda: condition([""]).each(torch.zeros_like) if pipe.config.get("force_zeros_for_empty_prompt") else condition([""])


@torch.no_grad()
def expanded(encode: Callable[[list[str]], C], prompts: Sequence[str]) -> C:
    """The rows of all prompts, each distinct one encoded once."""
    places = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    found = encode(list(places))
    return found if len(places) == len(prompts) else found[torch.tensor([places[prompt] for prompt in prompts])]
