"""One training loop for every model: time-boxed by the clock, resumable, logged, on one process or several.

Schedules run in fractions of the time allowed, so that the same recipe fits any machine. Several one-thread
processes with an all-reduce of the gradients survive a busy machine better than one process with many threads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn


@dataclass(frozen=True)
class Task:
    """What one training needs. `loss(generator)` draws its own batch from the generator it is given."""

    name: str
    module: nn.Module
    loss: Callable[[torch.Generator], Tensor]
    validate: Callable[[nn.Module], dict[str, float]]
    learning_rate: float
    weight_decay: float = 0.01
    flat: float = 0.3  # share of the time at full rate, before the cosine


@dataclass(frozen=True)
class Job:
    """A member of the family to be trained. `shared` holds the autoencoder, the CLIP and the base, `target` receives the member.

    `go_on`: begin with the weights that lie in `target`, where a checkpoint is gone. `batch` is that of one process.
    """

    name: str
    minutes: float
    work: Path
    shared: Path
    target: Path
    go_on: bool = False
    batch: int = 64
    device: str = "cpu"


def together(processes: int, work: Path, train: Callable[[Job], None], job: Job) -> None:
    """Run `train(job)` in several one-thread processes that share gradients in `fit`; `is_first` is true in one of them."""
    meeting = (work / f"meeting-{job.name}").absolute()
    meeting.unlink(missing_ok=True)
    spawn(_join, (processes, f"file://{meeting}", train, job), nprocs=processes)


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def fit(task: Task, minutes: float, work: Path, checkpoint_s: float = 120.0) -> nn.Module:
    """Train `task.module` until `minutes` of training time are used up; return the averaged weights.

    Resumes from `work/<name>.pt`. The average's horizon is 4 % of the steps so far, so it follows the schedule.
    """
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    work.mkdir(parents=True, exist_ok=True)
    path, log = work / f"{task.name}.pt", work / f"{task.name}.jsonl"
    average = deepcopy(task.module).requires_grad_(False)
    optimiser = torch.optim.AdamW(task.module.parameters(), lr=task.learning_rate, betas=(0.9, 0.99), weight_decay=task.weight_decay)
    step, used = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=next(task.module.parameters()).device)
        task.module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step, used = int(state["step"]), float(state["used"])
    started, saved, running = time.monotonic() - used, time.monotonic(), 0.0
    for fraction in _fractions(minutes, started):
        for group in optimiser.param_groups:
            group["lr"] = task.learning_rate * _rate(fraction, step, task.flat)
        draw = torch.Generator().manual_seed(step * size + rank)
        value = task.loss(draw)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        _share_gradients(task.module, size)
        torch.nn.utils.clip_grad_norm_(task.module.parameters(), 1.0)
        optimiser.step()
        step += 1
        _follow(average, task.module, horizon=max(10.0, 0.04 * step))
        running += 0.02 * (value.item() - running) if step > 1 else value.item()
        if rank == 0 and time.monotonic() - saved > checkpoint_s:
            state = {"module": task.module.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
            _save({**state, "step": step, "used": time.monotonic() - started}, path)
            _log(log, {"step": step, "minutes": (time.monotonic() - started) / 60, "loss": running, **task.validate(average)})
            saved = time.monotonic()
    if rank == 0:
        state = {"module": task.module.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
        _save({**state, "step": step, "used": minutes * 60}, path)
        _log(log, {"step": step, "minutes": minutes, "loss": running, **task.validate(average)})
    return average


def _join(rank: int, processes: int, meeting: str, train: Callable[[Job], None], job: Job) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    train(job)
    dist.destroy_process_group()


def _fractions(minutes: float, started: float) -> Iterator[float]:
    """The share of the time used, the same on every process, until it reaches one."""
    while True:
        fraction = torch.tensor((time.monotonic() - started) / (minutes * 60))
        if dist.is_initialized():
            dist.broadcast(fraction, src=0)
        if fraction >= 1:
            return
        yield float(fraction)


def _rate(fraction: float, step: int, flat: float) -> float:
    warm = min(1.0, (step + 1) / 200)
    late = max(0.0, (fraction - flat) / (1 - flat))
    return warm * (0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * late)))))


def _share_gradients(module: nn.Module, size: int) -> None:
    if size == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient) / size)


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, horizon: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 / horizon)


def _save(state: dict[str, object], path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)


def _log(path: Path, row: dict[str, float]) -> None:
    line = json.dumps({key: round(value, 5) for key, value in row.items()})
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")
