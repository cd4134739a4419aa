"""What each member of the family is shown and asked: its noise levels, its inputs, its targets and their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler
from torch import Tensor, nn

SHIFT = 3.0  # Stable Diffusion 3's
SIGMA_DATA = 1.0  # the latents' standard deviation, as scaled


class Question(NamedTuple):
    """A batch for the network: `input` at `time`, whose output should be `target`; `weight` [B] of each square error."""

    input: Tensor
    time: Tensor
    target: Tensor
    weight: Tensor


def preserving(prediction: str = "epsilon") -> DDIMScheduler:
    """Stable Diffusion 1.5's noise levels and spacing, so that strengths mean on these models what they mean there."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction,
    )


def flow() -> DPMSolverMultistepScheduler:
    """Stable Diffusion 3's shifted levels, stepped by Euler (which is the first order of this solver on a flow)."""
    return DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        flow_shift=SHIFT,
        prediction_type="flow_prediction",
        solver_order=1,
        final_sigmas_type="zero",
        steps_offset=1,  # of no effect on a flow, and expected by the pipeline
    )


def exploding() -> EDMEulerScheduler:
    """Karras et al.'s levels, .002 to 80."""
    return EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=SIGMA_DATA)


def ask_epsilon(x0: Tensor, draw: torch.Generator) -> Question:
    t, a, s, noise, weight = _preserved(x0, draw)
    return Question(a * x0 + s * noise, t, noise, weight)


def ask_v(x0: Tensor, draw: torch.Generator) -> Question:
    t, a, s, noise, weight = _preserved(x0, draw)
    return Question(a * x0 + s * noise, t, a * noise - s * x0, weight)


def ask_flow(x0: Tensor, draw: torch.Generator) -> Question:
    """Times from a logit-normal that leans to noise, as the shift does at sampling (Esser et al. 2024)."""
    t = torch.sigmoid(0.6 + 1.3 * torch.randn(len(x0), generator=draw))
    noise = torch.randn(x0.shape, generator=draw)
    wide = t.view(-1, 1, 1, 1)
    return Question((1 - wide) * x0 + wide * noise, 1000 * t, noise - x0, torch.ones(len(x0)))


def ask_edm(x0: Tensor, draw: torch.Generator) -> Question:
    """Karras et al.'s preconditioning, in the form of a target for the bare network; log sigma is normal."""
    sigma = torch.exp(-0.2 + 1.4 * torch.randn(len(x0), generator=draw))
    noise = torch.randn(x0.shape, generator=draw)
    s = sigma.view(-1, 1, 1, 1)
    x, total = x0 + s * noise, (s.square() + SIGMA_DATA**2).sqrt()
    target = (x0 - SIGMA_DATA**2 / total.square() * x) * total / (s * SIGMA_DATA)
    return Question(x / total, sigma.log() / 4, target, torch.ones(len(x0)))


Ask = Callable[[Tensor, torch.Generator], Question]


def error(model: nn.Module, question: Question, **condition: Tensor) -> Tensor:
    """The weighted mean square error of the network's answer, where the network is, in bfloat16 where that is safe."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        answer = _answer(model, question, condition, device)
    errors = (answer.float() - question.target.to(device)).square().mean((1, 2, 3))
    return (question.weight.to(device) * errors).mean()


def validation(question: Question, **condition: Tensor) -> Callable[[nn.Module], dict[str, float]]:
    """What a training logs of its averaged network: the mean square error of one fixed batch."""

    def validate(model: nn.Module) -> dict[str, float]:
        device, n = next(model.parameters()).device, len(question.input)
        with torch.no_grad():
            parts = [
                _answer(model, Question(*(part[i : i + 32] for part in question)), {k: v[i : i + 32] for k, v in condition.items()}, device)
                for i in range(0, n, 32)
            ]
        return {"mse": float((torch.cat(parts).cpu() - question.target).square().mean())}

    return validate


def _answer(model: nn.Module, question: Question, condition: dict[str, Tensor], device: torch.device) -> Tensor:
    answer: Tensor = model(question.input.to(device), question.time.to(device), **{k: v.to(device) for k, v in condition.items()}).sample
    return answer


def _preserved(x0: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    t = torch.randint(1000, (len(x0),), generator=draw)
    noise = torch.randn(x0.shape, generator=draw)
    abar = _ABAR[t]
    weight = (5 * (1 - abar) / abar).clamp(max=1).sqrt()  # a softened min-SNR-5 (Hang et al. 2023), for v too
    return t, abar.sqrt().view(-1, 1, 1, 1), (1 - abar).sqrt().view(-1, 1, 1, 1), noise, weight


_ABAR: Tensor = preserving().alphas_cumprod.float()
