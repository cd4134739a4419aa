"""The world's own judge: which attributes a picture shows. It is no part of the package."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.data import HEADS, HELD_OUT, TRAIN, floats, pool
from zoo.loop import Task, fit

WEIGHTS = Path(__file__).with_name("classifier.safetensors")


class Classifier(nn.Module):
    """Images [B, 3, 64, 64] in [-1, 1] to one row of logits for each of HEADS."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(3 * 128, len(values)) for values in HEADS.values())

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.body(images)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3)), x.std((2, 3))], 1)
        return [head(pooled) for head in self.heads]


def train(minutes: float, work: Path, target: Path, n: int = 40_000, batch: int = 64) -> None:
    """Cross entropy on all heads; colour is not asked of black and white scenes. Saved beside this file, not to `target`."""
    del target
    torch.manual_seed(0)
    data, held = pool(n, TRAIN, work), pool(1000, HELD_OUT, work)
    model = Classifier()

    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(n, (batch,), generator=draw)
        x, y = floats(data.images[rows]), _asked(data.labels[rows])
        x = x + 0.1 * torch.rand((), generator=draw) * torch.randn(x.shape, generator=draw)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        parts = [F.cross_entropy(row.float(), y[:, i], ignore_index=-1) for i, row in enumerate(logits)]
        return torch.stack(parts).sum()

    def validate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, Classifier)
        return accuracy(module, held.images, held.labels)

    final = fit(Task("classifier", model, loss, validate, learning_rate=2e-3), minutes, work)
    save_file({name: value.half().contiguous() for name, value in final.state_dict().items()}, WEIGHTS)


def load() -> Classifier:
    """The trained judge, float32, in evaluation mode."""
    model = Classifier()
    model.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of right answers by attribute; uint8 images, labels in the order of HEADS."""
    asked = _asked(labels)
    right = answers(model, images) == asked
    return {head: float(right[asked[:, i] >= 0, i].float().mean()) for i, head in enumerate(HEADS)}


@torch.no_grad()
def answers(model: Classifier, images: Tensor) -> Tensor:
    """What the judge sees in uint8 images: labels [n, heads] in the order of HEADS."""
    return torch.cat([torch.stack([row.argmax(1) for row in model(floats(part))], 1) for part in images.split(50)])


def _asked(labels: Tensor) -> Tensor:
    """Labels with -1 where the question has no answer: colours and plain backgrounds of black and white scenes."""
    y = labels.clone()
    heads = list(HEADS)
    grey = y[:, heads.index("tone")] == 1
    y[grey, heads.index("colour")] = -1
    y[grey, heads.index("background")] = -1
    return y
