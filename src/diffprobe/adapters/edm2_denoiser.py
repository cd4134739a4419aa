"""EDM2's networks as one denoiser: a class-conditional one, an unconditional one, or the two together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from diffprobe.adapters.edm2_network import Edm2
from diffprobe.errors import UserError
from diffprobe.measures.precision import full_float32

NO_CLASS = -1


@dataclass(frozen=True, eq=False)
class Edm2Denoiser:
    """D(x, sigma, cond): `cond` are class indices, int64 [B] or one for all; -1 or None asks for no class.

    Rows of no class go to the companion where there is one; without, the network sees zeros in place of a class. The network runs
    once for all rows with a class, however many classes they ask for.
    """

    network: Edm2
    companion: Edm2 | None = None

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        classes = self._classes(cond, len(x))
        sigma = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        x = x.float()
        with full_float32() if self.network.dtype == torch.float32 else nullcontext():
            bare = classes == NO_CLASS
            if self.companion is None or not bool(bare.any()):
                return _seen(self.network, x, sigma, classes)
            if bool(bare.all()):
                return _seen(self.companion, x, sigma, classes)
            clean = torch.empty_like(x)
            for rows, network in ((bare, self.companion), (~bare, self.network)):
                places = rows.nonzero().squeeze(1)
                there = places.to(x.device)
                clean = clean.index_copy(0, there, _seen(network, x[there], sigma[there], classes[places]))
            return clean

    def _classes(self, cond: Any, count: int) -> Tensor:
        """One class index a row, on the CPU: asking which rows have one then waits for no accelerator."""
        classes = torch.as_tensor(NO_CLASS if cond is None else cond, device="cpu")
        if classes.dtype != torch.int64:
            raise UserError(f"EDM2's condition is class indices, int64, not {classes.dtype}: take it from model.condition(['class 3', ''])")
        known = self.network.config.label_dim
        wrong = classes[(classes < NO_CLASS) | (classes >= known)]
        if wrong.numel():
            raise _no_such_class(int(wrong.flatten()[0]), known)
        return classes.expand(count)


def classes_by_name(count: int) -> Callable[[Sequence[str]], Tensor]:
    """What turns prompts into class indices, int64 [B]: 'class 3' into 3, '' into -1 (no class). Others raise UserError."""

    def condition(prompts: Sequence[str]) -> Tensor:
        found = []
        for prompt in prompts:
            named = re.fullmatch(r"class (\d{1,9})", prompt.strip())
            if prompt.strip() and not named:
                raise UserError(f"'{prompt}' is no class of this network: ask for 'class <number>', as in 'class 3', or for '' (no class)")
            found.append(int(named[1]) if named else NO_CLASS)
            if found[-1] >= count:
                raise _no_such_class(found[-1], count)
        return torch.tensor(found, dtype=torch.int64)

    return condition


def _seen(network: Edm2, x: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
    """The network on rows of these classes, -1 as zeros in place of a class."""
    count = network.config.label_dim
    labels = one_hot(classes + 1, count + 1)[:, 1:].to(x) if count else None
    clean: Tensor = network(x, sigma, labels)
    return clean


def _no_such_class(index: int, count: int) -> UserError:
    if not count:
        return UserError(f"class {index} was asked for, and this network is unconditional: ask for '' alone, or load a conditional one")
    return UserError(f"class {index} is none of this network's {count}: ask for 'class 0' to 'class {count - 1}', or for '' (no class)")
