"""What the examples share: networks whose weights come from an address, and a training loop that yields them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffprobe import rng

Network = TypeVar("Network", bound=nn.Module)


def perceptron(widths: Sequence[int], role: str, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with an activation between them; weights from the address `role` (He et al. 2015), biases 0."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        layer = nn.Linear(inputs, outputs)
        with torch.no_grad():
            drawn = rng.stream(f"{role}.weight", index).standard_normal((outputs, inputs))
            layer.weight.copy_(torch.from_numpy(drawn * math.sqrt(2 / inputs)))
            layer.bias.zero_()
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def fit(network: Network, loss: Callable[[int], Tensor], steps: int, learning_rate: float = 1e-3) -> Iterator[Network]:
    """Adam at a constant rate: the network after step 0, 1, ..., steps, with the weights' mean over about the last tenth of them.

    `loss(i)` draws the batch of step i. What is yielded is one network, changed in place: copy what is to be kept. Since nothing
    depends on `steps`, a longer training passes through the same networks.
    """
    average = deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    yield average
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        with torch.no_grad():
            for kept, now in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(now, 10 / (step + 10))
        yield average
