"""Files with the layout of those published for EDM2, with random weights; and the network computed from the paper's formulas alone."""

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from diffprobe.adapters.edm2_network import Edm2Config

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Tiny:
    """A network of two levels with attention on the coarse one."""

    side: int = 8
    channels: int = 4
    classes: int = 5
    width: int = 16
    blocks: int = 1
    head: int = 8
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    bound: float = 256.0
    sigma_data: float = 0.5

    @property
    def arguments(self) -> dict[str, Any]:
        """What NVIDIA's constructor would be called with."""
        return {
            "img_resolution": self.side,
            "img_channels": self.channels,
            "label_dim": self.classes,
            "use_fp16": True,
            "sigma_data": self.sigma_data,
            "logvar_channels": 6,
            "model_channels": self.width,
            "channel_mult": [1, 2],
            "num_blocks": self.blocks,
            "attn_resolutions": [self.side // 2],
            "label_balance": self.label_balance,
            "concat_balance": self.concat_balance,
            "channels_per_head": self.head,
            "res_balance": self.res_balance,
            "attn_balance": self.attn_balance,
            "clip_act": self.bound,
            "dropout": 0.1,
        }


def layout(tiny: Tiny) -> dict[str, tuple[int, ...]]:
    """The keys of a published file of this configuration and their shapes, written out level by level."""
    fine, coarse, emb, s = tiny.width, 2 * tiny.width, 2 * tiny.width, tiny.side
    shapes: dict[str, tuple[int, ...]] = {
        "unet.out_gain": (),
        "unet.emb_fourier.freqs": (fine,),
        "unet.emb_fourier.phases": (fine,),
        "unet.emb_noise.weight": (emb, fine),
        **({"unet.emb_label.weight": (emb, tiny.classes)} if tiny.classes else {}),
        f"unet.enc.{s}x{s}_conv.weight": (fine, tiny.channels + 1, 3, 3),
        "unet.out_conv.weight": (tiny.channels, fine, 3, 3),
        "logvar_fourier.freqs": (6,),
        "logvar_fourier.phases": (6,),
        "logvar_linear.weight": (1, 6),
    }

    def block(place: str, inside: int, outside: int, attends: bool = False) -> None:
        name = f"unet.{place}"
        shapes[f"{name}.emb_gain"] = ()
        shapes[f"{name}.conv_res0.weight"] = (outside, inside if place.startswith("dec") else outside, 3, 3)
        shapes[f"{name}.emb_linear.weight"] = (outside, emb)
        shapes[f"{name}.conv_res1.weight"] = (outside, outside, 3, 3)
        if inside != outside:
            shapes[f"{name}.conv_skip.weight"] = (outside, inside, 1, 1)
        if attends:
            shapes[f"{name}.attn_qkv.weight"] = (3 * outside, outside, 1, 1)
            shapes[f"{name}.attn_proj.weight"] = (outside, outside, 1, 1)

    half = s // 2
    for i in range(tiny.blocks):
        block(f"enc.{s}x{s}_block{i}", fine, fine)
    block(f"enc.{half}x{half}_down", fine, fine)
    for i in range(tiny.blocks):
        block(f"enc.{half}x{half}_block{i}", fine if i == 0 else coarse, coarse, True)
    block(f"dec.{half}x{half}_in0", coarse, coarse, True)
    block(f"dec.{half}x{half}_in1", coarse, coarse)
    for i in range(tiny.blocks + 1):
        block(f"dec.{half}x{half}_block{i}", coarse + (coarse if i < tiny.blocks else fine), coarse, True)
    block(f"dec.{s}x{s}_up", coarse, coarse)
    for i in range(tiny.blocks + 1):
        block(f"dec.{s}x{s}_block{i}", (coarse if i == 0 else fine) + fine, fine)
    return shapes


def random_arrays(tiny: Tiny, seed: int = 0) -> Arrays:
    """Weights whose rows have magnitudes from .3 to 3, so that forgetting to normalise them shows; gains that are not 0 or 1."""
    draws, arrays = np.random.default_rng(seed), {}
    for name, shape in layout(tiny).items():
        if name.endswith("gain"):
            arrays[name] = draws.uniform(0.4, 0.9, shape)
        elif name.endswith(("freqs", "phases")):
            arrays[name] = draws.uniform(-3, 3, shape)
        else:
            arrays[name] = draws.standard_normal(shape) * draws.uniform(0.3, 3, (shape[0], *[1] * (len(shape) - 1)))
    return arrays


def reference(tiny: Tiny, arrays: Arrays, x: Array, sigma: Array, labels: Array | None) -> Array:  # noqa: PLR0915 (one formula after another)
    """D(x; sigma, labels) in float64 by numpy: appendix B of Karras et al. 2024 and table 1 of Karras et al. 2022, line by line."""

    def unit(value: Array, axes: tuple[int, ...]) -> Array:
        return np.asarray(value / (1e-4 + np.sqrt(np.mean(value**2, axis=axes, keepdims=True))))

    def weight(name: str) -> Array:
        w = arrays[f"{name}.weight"]
        return np.asarray(unit(w, tuple(range(1, w.ndim))) / np.sqrt(np.prod(w.shape[1:])))

    def linear(value: Array, name: str) -> Array:
        return np.asarray(np.einsum("bi,oi->bo", value, weight(name)))

    def conv(value: Array, name: str) -> Array:
        w = weight(name)
        edge = w.shape[-1] // 2
        padded = np.pad(value, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
        h, v = value.shape[2:]
        shifted = [
            np.einsum("bihw,oi->bohw", padded[:, :, r : r + h, c : c + v], w[:, :, r, c])
            for r in range(len(w[0, 0]))
            for c in range(len(w[0, 0]))
        ]
        return np.asarray(sum(shifted))

    def mp_silu(value: Array) -> Array:
        return np.asarray(value / (1 + np.exp(-value)) / 0.596)

    def mp_sum(a: Array, b: Array, t: float) -> Array:
        return np.asarray(((1 - t) * a + t * b) / np.sqrt((1 - t) ** 2 + t**2))

    def mp_cat(a: Array, b: Array, t: float) -> Array:
        na, nb = a.shape[1], b.shape[1]
        common = np.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
        return np.concatenate([common * (1 - t) / np.sqrt(na) * a, common * t / np.sqrt(nb) * b], axis=1)

    def attention(value: Array, name: str) -> Array:
        batch, channels, h, v = value.shape
        qkv = conv(value, f"{name}.attn_qkv")
        out = np.zeros_like(value)
        for head in range(channels // tiny.head):
            first = head * tiny.head * 3
            q, k, w = (unit(qkv[:, first + part : first + 3 * tiny.head : 3].reshape(batch, tiny.head, h * v), (1,)) for part in range(3))
            scores = np.einsum("bcq,bck->bqk", q, k) / np.sqrt(tiny.head)
            chance = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            seen = np.einsum("bqk,bck->bcq", chance, w).reshape(batch, tiny.head, h, v)
            out[:, head * tiny.head : (head + 1) * tiny.head] = seen
        return mp_sum(value, conv(out, f"{name}.attn_proj"), tiny.attn_balance)

    def block(value: Array, emb: Array, place: str, *, attends: bool = False) -> Array:
        name, decodes = f"unet.{place}", place.startswith("dec")
        if place.endswith("_down"):
            value = (value[:, :, ::2, ::2] + value[:, :, 1::2, ::2] + value[:, :, ::2, 1::2] + value[:, :, 1::2, 1::2]) / 4
        if place.endswith("_up"):
            value = np.repeat(np.repeat(value, 2, axis=2), 2, axis=3)
        changes = f"{name}.conv_skip.weight" in arrays
        if not decodes:
            value = unit(conv(value, f"{name}.conv_skip") if changes else value, (1,))
        scale = linear(emb, f"{name}.emb_linear") * arrays[f"{name}.emb_gain"] + 1
        residual = conv(mp_silu(value), f"{name}.conv_res0") * scale[:, :, None, None]
        residual = conv(mp_silu(residual), f"{name}.conv_res1")
        if decodes and changes:
            value = conv(value, f"{name}.conv_skip")
        value = mp_sum(value, residual, tiny.res_balance)
        if attends:
            value = attention(value, name)
        return np.clip(value, -tiny.bound, tiny.bound)

    s = sigma[:, None, None, None]
    total = np.sqrt(s**2 + tiny.sigma_data**2)
    fourier = np.sqrt(2) * np.cos(np.log(sigma)[:, None] / 4 * arrays["unet.emb_fourier.freqs"] + arrays["unet.emb_fourier.phases"])
    emb = linear(fourier, "unet.emb_noise")
    if tiny.classes:
        given = np.zeros((len(x), tiny.classes)) if labels is None else labels
        emb = mp_sum(emb, linear(given * np.sqrt(tiny.classes), "unet.emb_label"), tiny.label_balance)
    emb = mp_silu(emb)

    fine, coarse = f"{tiny.side}x{tiny.side}", f"{tiny.side // 2}x{tiny.side // 2}"
    shown = np.concatenate([x / total, np.ones_like(x[:, :1])], axis=1)
    skips = [conv(shown, f"unet.enc.{fine}_conv")]
    for i in range(tiny.blocks):
        skips.append(block(skips[-1], emb, f"enc.{fine}_block{i}"))
    skips.append(block(skips[-1], emb, f"enc.{coarse}_down"))
    for i in range(tiny.blocks):
        skips.append(block(skips[-1], emb, f"enc.{coarse}_block{i}", attends=True))
    y = block(skips[-1], emb, f"dec.{coarse}_in0", attends=True)
    y = block(y, emb, f"dec.{coarse}_in1")
    for i in range(tiny.blocks + 1):
        y = block(mp_cat(y, skips.pop(), tiny.concat_balance), emb, f"dec.{coarse}_block{i}", attends=True)
    y = block(y, emb, f"dec.{fine}_up")
    for i in range(tiny.blocks + 1):
        y = block(mp_cat(y, skips.pop(), tiny.concat_balance), emb, f"dec.{fine}_block{i}")
    assert not skips
    raw = conv(y, "unet.out_conv") * arrays["unet.out_gain"]
    return np.asarray(tiny.sigma_data**2 / total**2 * x + s * tiny.sigma_data / total * raw)


class EasyDict(dict[str, Any]):
    pass


def _reconstruct_persistent_obj(meta: object) -> None:
    raise AssertionError("what the file names was called")


class Persistent(nn.Module):
    """Pickles as NVIDIA's persistent classes do: a function that compiles source text, and a dictionary about the object."""

    def __init__(self, kind: str, source: str, arguments: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.__dict__["_saved_as"] = (kind, source)
        self.__dict__.update(_init_args=(), _init_kwargs=arguments or {})

    def __reduce__(self) -> Any:
        kind, source = self.__dict__["_saved_as"]
        state = {key: value for key, value in self.__dict__.items() if key != "_saved_as"}
        return _reconstruct_persistent_obj, ({"type": "class", "version": 6, "module_src": source, "class_name": kind, "state": state},)


class Encoder:
    """The encoder beside a published network of latents."""

    def __init__(self, source: str, **arguments: Any) -> None:
        scales = {"scale": np.array([0.5, 1.0], np.float32), "bias": np.float64(0.5), "_vae": None, "dtype": torch.float16}
        self.about = {"module_src": source, "class_name": "StabilityVAEEncoder", "state": {"_init_kwargs": arguments, **scales}}

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (self.about,)


def network(arguments: dict[str, Any], arrays: Arrays, source: str = "", kind: str = "Precond") -> nn.Module:
    """Stand-ins that hold arrays, as float16, under the paths that their names say."""
    root = Persistent(kind, source, arguments)
    for name, value in arrays.items():
        *path, leaf = name.split(".")
        at: nn.Module = root
        for depth, part in enumerate(path):
            if part not in dict(at.named_children()):
                inner = nn.ModuleDict() if part in {"enc", "dec"} else Persistent("UNet" if part == "unet" else f"Part{depth}", source)
                at.add_module(part, inner)
            at = at.get_submodule(part)
        tensor = torch.tensor(value, dtype=torch.float16)
        if leaf in {"freqs", "phases"}:
            at.register_buffer(leaf, tensor)
        else:
            at.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root


def config(tiny: Tiny) -> Edm2Config:
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in tiny.arguments.items()}
    return Edm2Config(**{key: value for key, value in given.items() if key not in {"use_fp16", "dropout"}})


def asked(tiny: Tiny, count: int = 3, seed: int = 5) -> tuple[Tensor, Tensor, Tensor | None]:
    """x at levels from low to high, and labels one-hot but for the last, which are zeros."""
    draws = np.random.default_rng(seed)
    sigma = np.geomspace(0.01, 30, count)
    x = draws.standard_normal((count, tiny.channels, tiny.side, tiny.side)) * np.sqrt(sigma**2 + 0.25)[:, None, None, None]
    labels = np.eye(max(tiny.classes, 1))[np.arange(count) % max(tiny.classes, 1)] * (np.arange(count) < count - 1)[:, None]
    return torch.tensor(x), torch.tensor(sigma), torch.tensor(labels) if tiny.classes else None


def expected(tiny: Tiny, arrays: Arrays, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    return torch.tensor(reference(tiny, arrays, x.double().numpy(), sigma.double().numpy(), None if labels is None else labels.numpy()))


def save(path: Path, content: object, protocol: int = 4) -> Path:
    """Pickle stand-ins under NVIDIA's names, from modules that are gone when they are read."""
    with _pretended(), path.open("wb") as file:
        pickle.dump(content, file, protocol)
    return path


def save_published(path: Path, tiny: Tiny, arrays: Arrays, source: str = "raise SystemExit('run')", **encoder: Any) -> Path:
    """A whole published file: the network under 'ema', and what lies beside it."""
    beside = {"encoder": Encoder(source, **encoder), "dataset_kwargs": EasyDict(path="x.zip", use_labels=True), "loss_fn": None}
    return save(path, EasyDict(ema=network(tiny.arguments, arrays, source), **beside))


def halved(arrays: Arrays, *, gains: bool = True) -> Arrays:
    """Arrays as float16 keeps them; gains as the published network has them act, which divides them by sqrt(fan-in) in float16 first."""
    kept = {name: np.asarray(value, np.float16).astype(np.float64) for name, value in arrays.items()}
    for name in [name for name in kept if name.endswith("gain") and gains]:
        weight = kept["unet.out_conv.weight" if name == "unet.out_gain" else name.replace("emb_gain", "emb_linear.weight")]
        root = np.sqrt(np.prod(weight.shape[1:]))
        kept[name] = np.float64(np.float16(np.float32(kept[name]) / np.float32(root))) * root
    return kept


@contextmanager
def _pretended() -> Iterator[None]:
    names: dict[str, Any] = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}
    before = {kind: kind.__module__ for kind in names.values()}
    made = {part for name in names for part in (name, name.partition(".")[0])}
    assert not made & sys.modules.keys()
    try:
        for part in made:
            sys.modules[part] = ModuleType(part)
        for name, kind in names.items():
            setattr(sys.modules[name], kind.__name__, kind)
            kind.__module__ = name
        yield
    finally:
        for kind, module in before.items():
            kind.__module__ = module
        for part in made:
            del sys.modules[part]
