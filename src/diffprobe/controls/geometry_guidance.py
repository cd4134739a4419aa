"""Guidance by geometry: a trained guide's gradient steers samples to where the decoder stretches more, or less (Humayun et al. 2024)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffprobe.controls.deployed import Applied, Calls, at_work, network_in
from diffprobe.controls.guide_network import GuideNetwork
from diffprobe.errors import UserError, unknown
from diffprobe.model import Denoiser
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, like

Objective = Literal["mean", "top", "bottom"]
OBJECTIVES = ("mean", "top", "bottom")
_KEY = "diffprobe.geometry_guide"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class GeometryGuide:
    """A trained network that tells the bin of psi from a noisy latent, and the score R whose gradient steers.

    It sees x_t / sqrt(alpha^2 + sigma^2) and sigma/alpha, the same on every path: one guide serves all models of one autoencoder.
    `edges` [bins + 1] bound its bins of psi, `centre` and `spread` are the labels' mean and standard deviation. R is, by
    `objective`, "mean": sum_k softmax_k c_k, c_k the bins' middles less `centre` over `spread`, so that R counts standard deviations
    of psi; "top" or "bottom": log p of the highest or the lowest bin. `levels` is the range of sigma/alpha that it was trained on;
    beyond, it takes the nearest. `labels` says how psi was measured (directions, their seed, target, model), `quality` what it reaches.
    """

    network: GuideNetwork
    edges: tuple[float, ...]
    centre: float
    spread: float
    levels: tuple[float, float]
    labels: Mapping[str, str | int] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)
    objective: Objective = "mean"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise unknown("objective", str(self.objective), OBJECTIVES)
        if len(self.edges) != self.network.bins + 1:
            raise UserError(f"{self.network.bins} bins have {self.network.bins + 1} edges, not {len(self.edges)}")
        self.network.requires_grad_(False).eval()

    @property
    def shape(self) -> tuple[int, int, int]:
        """That of one latent."""
        return self.network.shape

    @property
    def centres(self) -> Tensor:
        """The middles of the bins in standard deviations of psi from its mean, float32 [bins]."""
        edges = torch.tensor(self.edges, dtype=torch.float64)
        return (((edges[1:] + edges[:-1]) / 2 - self.centre) / self.spread).float()

    def score(self, x: Tensor, t: Tensor | float, path: NoisePath) -> Tensor:
        """R(x_t, t) [B] float32 of x [B, C, h, w] in the path's own scale, differentiable in x; t a scalar or [B]."""
        size = (path.alpha(t).square() + path.sigma(t).square()).sqrt()
        return self._score(x / like(size, x), path.ratio(t))

    def slope(self, unit: Tensor, ratio: Tensor | float) -> Tensor:
        """The gradient of R in u = x_t / sqrt(alpha^2 + sigma^2), float32 [B, C, h, w], at sigma/alpha a scalar or [B].

        It can itself be differentiated where gradients are on and `unit` asks for them; else it needs no such permission.
        """
        wanted = torch.is_grad_enabled() and unit.requires_grad
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(unit.device.type, enabled=False):
            point = unit.float() if wanted else unit.detach().clone().float().requires_grad_()
            (gradient,) = torch.autograd.grad(self._score(point, ratio).sum(), point, create_graph=wanted)
        return gradient

    def push(self, unit: Tensor, ratio: Tensor | float) -> Tensor:
        """What strength 1 adds to the noise eps that a network predicts, -sigma grad_x R, float32 [B, C, h, w]; 0 in pure noise."""
        r = torch.as_tensor(ratio, dtype=torch.float64)
        known = r.isfinite()
        size = torch.where(known, r, torch.zeros_like(r))
        return -like(size / (1 + size.square()).sqrt(), unit).float() * self.slope(unit, torch.where(known, r, torch.ones_like(r)))

    @property
    def fingerprint(self) -> str:
        """sha256 over the weights and all that is stored beside them."""
        total = hashlib.sha256(self._told().encode())
        for name, value in self.network.pieces():
            total.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return f"sha256:{total.hexdigest()}"

    def save(self, path: Path | str) -> None:
        """One safetensors file: the weights, and the rest as JSON in its header."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.pieces()}
        save_file(weights, path, metadata={_KEY: self._told()})

    @classmethod
    def load(cls, path: Path | str) -> GeometryGuide:
        """What `save` wrote, to the bit. Raises UserError for a file that is none, or is damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                told, weights = (file.metadata() or {}).get(_KEY), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} cannot be read as a guide ({type(error).__name__}): give a file that GeometryGuide.save wrote"
            ) from error
        if told is None:
            raise UserError(f"{path} is no geometry guide: give a file that GeometryGuide.save wrote")
        try:
            found = json.loads(told)
            channels, height, width = found["shape"]
            network = GuideNetwork((channels, height, width), int(found["bins"]), int(found["width"]))
            network.load_state_dict(weights, assign=True)
            edges, levels = tuple(found["edges"]), (float(found["levels"][0]), float(found["levels"][1]))
            kept = {key: found[key] for key in ("centre", "spread", "labels", "quality", "objective")}
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
            raise UserError(f"{path} is a damaged geometry guide, or one of another version: train it again") from error
        return cls(network, edges, levels=levels, **kept)

    def _score(self, unit: Tensor, ratio: Tensor | float) -> Tensor:
        self.check(unit)
        self.network.to(unit.device)
        log = torch.as_tensor(ratio, dtype=torch.float64).clamp(*self.levels).log().float().to(unit.device)
        chances = F.log_softmax(self.network(unit.float(), log.expand(len(unit))), 1)
        if self.objective == "mean":
            return chances.exp() @ self.centres.to(unit.device)
        return chances[:, -1 if self.objective == "top" else 0]

    def check(self, x: Tensor) -> None:
        """Raises UserError for latents of another shape than those that this guide was trained on."""
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(
                f"this guide was trained on latents {list(self.shape)}, not {list(x.shape[1:])}: train one for this model and size"
            )

    def _told(self) -> str:
        """All but the weights, as JSON."""
        told = {name: getattr(self, name) for name in ("edges", "centre", "spread", "levels", "objective")}
        told |= {"labels": dict(self.labels), "quality": dict(self.quality), "version": _VERSION}
        told |= {"shape": self.shape, "bins": self.network.bins, "width": self.network.width}
        return json.dumps(told, sort_keys=True)


def steered(denoiser: Denoiser | None, path: NoisePath | None, guide: GeometryGuide, strength: float) -> Denoiser:
    """The denoiser that goes `strength` up the guide's score: eps' = eps - strength sigma grad R, on every path.

    So D' = D + strength sigma^2/alpha grad_x R. Strength 0 is the denoiser itself, one above 0 raises psi, one below lowers it; in
    pure noise, where alpha is 0, nothing is added. One pass and one gradient of the guide a call. It may stand inside
    `sampling.guided` or around it. Raises UserError for a strength that is not finite, for a model's denoiser or path where it has
    none, and at the call for other latents.
    """
    _check(strength)
    if denoiser is None or path is None:
        raise UserError("this model has no denoiser with a noise path to be steered: steer its deployed pipeline by apply_guide")
    if strength == 0:
        return denoiser

    def moved(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        ratio = path.ratio(t)
        size = (path.alpha(t).square() + path.sigma(t).square()).sqrt()
        step = torch.where(ratio.isfinite(), -strength * ratio, torch.zeros_like(ratio))
        x0 = denoiser(x, t, cond)
        return x0 + like(step, x) * guide.push(x / like(size, x), ratio).to(x0)

    return moved


def apply_guide(pipe: Any, guide: GeometryGuide, strength: float) -> Applied:
    """Let a deployed diffusers pipeline be steered as `steered` does, from now on or within `with apply_guide(pipe, guide, strength):`.

    Whatever the network predicts (eps, v, a velocity, x_0; raw, or with EDM's preconditioning), its answer is changed by what
    eps' = eps - strength sigma grad R means in it, both halves of a guided batch alike, which steers the guided sum by as much. It
    may be applied beside a guidance interval, in any order. Calls that are not this pipeline's pass untouched. Raises UserError for
    what is no pipeline, one on other latents, and a second guide; RuntimeWarning at the end where the pipeline never called.
    """
    _check(strength)
    network = network_in(pipe)
    channels = int(getattr(network.config, "in_channels", guide.shape[0]))
    if channels != guide.shape[0]:
        raise UserError(
            f"the network of this {type(pipe).__name__} takes {channels} channels, and the guide knows latents of {guide.shape[0]}: "
            "only pipelines whose network sees the noisy latent alone can be steered"
        )
    if at_work(pipe, network, _Steering):
        raise UserError("this pipeline is steered by a guide already: remove that one first")
    steering = _Steering(Calls(pipe, network), guide, strength)
    hook = network.register_forward_hook(torch.compiler.disable(steering.after), with_kwargs=True)
    return Applied(steering.calls, (hook,), ("a guide", "was not steered"))


@dataclass(eq=False)
class _Steering:
    """A hook after a network's forward, so that whatever else wraps or compiles that is left alone."""

    calls: Calls
    guide: GeometryGuide
    strength: float

    def after(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The network's answer to a call of this pipeline, moved."""
        if self.calls.caller(network) is None:
            return None
        self.calls.seen += 1
        if self.strength == 0:
            return None
        given = self.calls.given(args, kwargs)
        x = given[self.calls.names[0]]
        if x.ndim != 4:
            raise UserError(
                f"this {type(self.calls.pipe).__name__} shows its network latents {list(x.shape)}, not [B, C, h, w]: no guide applies"
            )
        path, ratio = self.calls.level(given["timestep"])
        half = len(x) // 2
        if half and len(x) % 2 == 0 and torch.equal(x[:half], x[half:]):
            x = x[:half]  # [negative; positive] of the same latents
        shown, answered = _scales(self.calls.pipe.scheduler, path, ratio)
        answer = output[0] if isinstance(output, tuple) else output.sample
        added = self.strength * answered * self.guide.push(x.float() * shown, ratio)
        moved = answer.clone()  # further channels, as of a learned variance, stay as they are
        moved[:, : x.shape[1]] += added.repeat(len(answer) // len(x), 1, 1, 1).to(answer)
        return (moved, *output[1:]) if isinstance(output, tuple) else replace(output, sample=moved)


def _scales(scheduler: Any, path: NoisePath, ratio: float) -> tuple[float, float]:
    """What turns the network's input into x_t / sqrt(alpha^2 + sigma^2), and a change of eps into one of the network's answer.

    By x_0' - x_0 = -r d_eps, r = sigma/alpha: eps takes d_eps, v and a flow's velocity (x_0 = alpha x - sigma v and x - sigma v)
    d_eps/alpha, x_0 -r d_eps. With EDM's preconditioning x_0 = c_skip x + c_out F and the input is x / sqrt(r^2 + sigma_data^2).
    Solvers on a variance-preserving path show their network x_t itself, in whatever scale they work.
    """
    if not math.isfinite(ratio):
        return 1.0, 0.0
    size = math.hypot(1.0, ratio)
    if isinstance(path, VarianceExploding):
        deviation = float(scheduler.config.sigma_data)
        total = math.hypot(ratio, deviation)
        sign = {"epsilon": -1.0, "v_prediction": 1.0}[scheduler.config.prediction_type]
        return total / size, sign * total / deviation
    over_alpha = 1 + ratio if isinstance(path, RectifiedFlow) else size
    shown = over_alpha / size if isinstance(path, RectifiedFlow) else 1.0
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    by_kind = {"epsilon": 1.0, "v_prediction": over_alpha, "flow_prediction": over_alpha, "sample": -ratio}
    if kind not in by_kind:
        raise unknown("prediction type", kind, by_kind)
    return shown, by_kind[kind]


def _check(strength: float) -> None:
    if not math.isfinite(strength):
        raise UserError(f"a strength is a finite number, not {strength}: 0 is none, above raises psi, below lowers it")
