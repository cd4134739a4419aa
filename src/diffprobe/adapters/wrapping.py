"""A user's own network, editor or generator as a model, in three lines."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import CellType, CodeType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffprobe.adapters.callables import CallableEditor, CallableGenerator, Clock, Condition, Draw, Edit, NetworkDenoiser, described
from diffprobe.adapters.codecs import PixelCodec
from diffprobe.adapters.custom import told
from diffprobe.adapters.denoisers import PREDICTIONS, Convention, convention
from diffprobe.adapters.published import digest_state
from diffprobe.adapters.schedulers import distilled, path_of, visited
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError, unknown
from diffprobe.model import Codec, Model
from diffprobe.paths import NoisePath

#: Short words for what a network predicts, and diffusers' own.
WORDS = {"eps": "epsilon", "v": "v_prediction", "velocity": "flow_prediction", "x0": "sample", **{word: word for word in PREDICTIONS}}
_ASKED = ("network", "editor", "generator")
_PATH = ("alpha", "sigma", "ratio", "time", "levels")
_SQUARE = "probes look at square images, so give a square `shape`, or codec=None"


def wrap(  # noqa: PLR0913 - a model's parts, each by its name, in one call
    network: Callable[..., Any] | None = None,
    *,
    predicts: str | None = None,
    path: NoisePath | Any = None,
    shape: Sequence[int] | None = None,
    clock: Clock | None = None,
    codec: Codec | Literal["auto"] | None = "auto",
    condition: Condition | None = None,
    editor: Edit | None = None,
    generator: Draw | None = None,
    size: int | None = None,
    strength_axis: bool = True,
    name: str | None = None,
    version: str | None = None,
    device: str = "auto",
) -> Model:
    """A model of your own parts: a network on a noise path, and a generator beside it; or a plain callable that edits or generates.

    `network(x, t)`, or `network(x, t, cond)` with a `condition` (prompts to what the network takes; it must know the empty prompt): a
    module, which is moved to the device and set to `eval()`, or any callable. x is [B, *shape], t [B] float32. Its answer is a tensor, an
    object with `.sample`, or a tuple that begins with one; `predicts` says of what: "epsilon" or "eps"; "v_prediction" or "v",
    alpha eps - sigma x_0; "flow_prediction" or "velocity", eps - x_0; "sample" or "x0", which is also D(x, sigma). Scaling x for the
    network is the callable's own affair. `path`: a noise path, or a diffusers scheduler; its networks are asked as diffusers asks them,
    and `predicts` may be left out. `clock`: from the path's times [B] to the network's (as they are, if left out).
    `codec`: between images and x; "auto" is the identity from [0, 1] to [-1, 1] where x has 3 channels, else none.

    `editor(images, prompts, seeds, settings)` and `generator(prompts, seeds, settings)` give images: see `callables`. `size`: their side
    in pixels. `strength_axis`: false where the editor ignores strength. `version`: what a service says that it is, which nothing else
    tells. A network and its codec are asked once. Raises UserError for what is missing, does not belong together, or cannot be asked.
    """
    place, _ = LoadOptions(device).place()
    parts = {"network": network, "editor": editor, "generator": generator, "condition": condition, "clock": clock}
    own = {role: part for role, part in parts.items() if part is not None}
    asked = _Settings(predicts, path, shape, clock, codec, condition)
    _check(own, asked, size)
    model = Model(
        name=name or _short(next(iter(own.values()))),
        editor=None if editor is None else CallableEditor(editor, size or 0, strength_axis),
        generator=None if generator is None else CallableGenerator(generator, size or 0),
        device=str(place),
    )
    if network is not None:
        model = _with_network(model, network, asked, place)
        _try(model)
    codecs = {} if model.codec is None else {"codec": model.codec}
    return replace(model, identity={"source": "wrapped", **_identity({**own, **codecs}, version), **model.identity})


@dataclass(frozen=True)
class _Settings:
    """How a network is to be asked: settings of `wrap` by their names there."""

    predicts: str | None
    path: Any
    shape: Sequence[int] | None
    clock: Clock | None
    codec: Codec | str | None
    condition: Condition | None


def _check(own: Mapping[str, Any], asked: _Settings, size: int | None) -> None:
    """Raise UserError for parts that are lacking, cannot be called, or do not belong together."""
    for role, part in own.items():
        if not callable(part):
            raise UserError(f"`{role}` ({type(part).__name__}) cannot be called: give a function, or a module")
    if not own.keys() & {"network", "editor", "generator"}:
        raise UserError("there is nothing to wrap: give a network, an `editor` or a `generator`")
    if {"network", "editor"} <= own.keys():
        raise UserError("a network and an editor are two models, since nothing ties their noise levels: wrap each by itself")
    if own.keys() & {"editor", "generator"} and not (isinstance(size, int) and size > 0):
        given = "" if size is None else f", not {size!r}"
        raise UserError(f"how large are its images? Give `size`, their side in pixels, such as size=512{given}")
    if "network" not in own:
        for field in dataclasses.fields(asked):
            value = getattr(asked, field.name)
            if value is not None and not (isinstance(value, str) and value == "auto"):
                raise UserError(f"`{field.name}` says how a network is asked: leave it out, or give the network")
    elif asked.path is None or asked.shape is None:
        raise UserError("a network needs `path`, such as VariancePreserving.scaled_linear(), and `shape`, such as (3, 32, 32)")
    elif not (isinstance(asked.shape, Sequence) and asked.shape and all(isinstance(side, int) and side > 0 for side in asked.shape)):
        raise UserError(f"`shape` is that of one x without the batch, such as (3, 32, 32), not {asked.shape!r}")


def _with_network(model: Model, network: Callable[..., Any], asked: _Settings, place: torch.device) -> Model:
    """The model with what a network on a path can do."""
    assert asked.shape is not None
    deployed = hasattr(asked.path, "set_timesteps") and not isinstance(asked.path, type)  # a diffusers scheduler
    how, more = _convention(asked.predicts, asked.path, deployed)
    if isinstance(network, nn.Module):
        network = network.to(place).eval()
    shape, codec = tuple(asked.shape), asked.codec
    if isinstance(codec, str):
        if codec != "auto":
            raise unknown("codec", codec, ["auto"])
        codec = PixelCodec(device=place) if len(shape) == 3 and shape[0] == 3 else None
    elif codec is not None and not (callable(getattr(codec, "encode", None)) and callable(getattr(codec, "decode", None))):
        raise UserError(f"`codec` ({type(codec).__name__}) has no `encode` and `decode`: give both, between images and x")
    clock = asked.clock or (None if deployed else _as_it_is)
    denoiser = NetworkDenoiser(network, how, clock, asked.condition)
    kind = str(denoiser.dtype).removeprefix("torch.")
    found = replace(model, path=how.path, denoiser=denoiser, codec=codec, condition=asked.condition)
    return replace(found, shape=shape, identity={"predicts": how.prediction, "path": _path_digest(how.path), "dtype": kind, **more})


def _convention(predicts: str | None, path: Any, deployed: bool) -> tuple[Convention, dict[str, str]]:
    """How a network on a path, or of a diffusers scheduler, is asked, and what identifies it further."""
    if predicts is not None and not (isinstance(predicts, str) and predicts in WORDS):
        raise unknown("prediction", str(predicts), WORDS)
    if deployed:
        own, more = convention(visited(path_of(path), path), path), distilled(path)
        if predicts is None:
            return own, more
        if own.sigma_data is not None and WORDS[predicts] in ("sample", "flow_prediction"):
            what = type(path).__name__
            raise UserError(f"{what} preconditions its network, which predicts epsilon or v_prediction: give one, or leave `predicts` out")
        return replace(own, prediction=WORDS[predicts]), more
    if isinstance(path, type) or not (hasattr(path, "end") and all(callable(getattr(path, part, None)) for part in _PATH)):
        what = path.__name__ if isinstance(path, type) else type(path).__name__
        remedy = f"{what}()" if isinstance(path, type) else "a VariancePreserving, VarianceExploding or RectifiedFlow, or a scheduler"
        raise UserError(f"`path` ({what}) is no noise path: give {remedy}")
    if predicts is None:
        raise UserError(f"what does the network predict? Give `predicts`, one of {', '.join(WORDS)}")
    return Convention(path, WORDS[predicts]), {}


def _as_it_is(t: Tensor) -> Tensor:
    return t


def _try(model: Model) -> None:
    """Ask a network and its codec once; raises UserError where either cannot be, or gives something of another shape."""
    assert model.denoiser is not None
    assert model.path is not None
    assert model.shape is not None
    x, t = torch.zeros(2, *model.shape, device=model.device), model.path.levels(2)[-1]
    with torch.no_grad():
        if model.condition is not None:
            _ask("the condition", "it must know the empty prompt", partial(model.condition, ["", ""]))
        call = f"it is called with x {list(x.shape)}, t [2]" + (" and what the condition gave" if model.condition else " alone")
        _ask("the network", call, partial(model.denoiser, x, t))
        if model.codec is not None:
            image = _ask("the codec's decode", f"it is called with {list(x.shape)}", partial(model.codec.decode, x))
            if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[:2] != (2, 3):
                raise UserError(f"the codec's decode gave {described(image)} for {list(x.shape)}: give images [2, 3, H, W]")
            if image.shape[2] != image.shape[3]:
                raise UserError(f"x {list(x.shape)} decodes to {list(image.shape)}, and {_SQUARE}")
            back = _ask(
                "the codec's encode", f"it is called with {list(image.shape)}", partial(model.codec.encode, image.float().cpu().clamp(0, 1))
            )
            if not isinstance(back, Tensor) or back.shape != x.shape:
                raise UserError(f"the codec's encode gave {described(back)} for images {list(image.shape)}: give {list(x.shape)}")


def _ask(what: str, how: str, ask: Callable[[], Any]) -> Any:
    """What comes of asking somebody's code; raises UserError with its error in a line."""
    try:
        return ask()
    except UserError:
        raise
    except Exception as error:
        why = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"{what} cannot be asked ({type(error).__name__}: {why}): {how}") from error


def _identity(own: Mapping[str, Any], version: str | None) -> dict[str, str]:
    """Every part by the fingerprint that it gives itself, or by its name, its source file and its weights; the network's weights whole.

    The version is told, or said to be unstated, where no weights show what answers.
    """
    states = {role: _weights(part) for role, part in own.items() if told(part) is None}
    digests = {role: digest_state(state) for role, state in states.items() if state}
    found = {role: told(part) or f"{_origin(part)}/{digests.get(role, 'none')[:16]}" for role, part in own.items()}
    if "network" in digests:
        found["weights"] = f"sha256:{digests['network']}"
    hidden = any(role in states and not states[role] for role in _ASKED)
    return found | ({"version": version or "unstated"} if version or hidden else {})


def _weights(part: Any) -> dict[str, Tensor]:
    """The weights that show: of a module, or of the modules that `_held` finds, also as items of a dict, a list or a tuple there."""
    found = dict[str, Tensor]()
    for name, held in _held(part):
        items = held.items() if isinstance(held, Mapping) else enumerate(held) if isinstance(held, list | tuple) else ()
        for place, module in ((name, held), *((f"{name}.{key}", item) for key, item in items)):
            if isinstance(module, nn.Module):
                state = module.state_dict()
                found |= {f"{place}.{key}".lstrip("."): value for key, value in state.items() if isinstance(value, Tensor)}
    return found


def _held(part: Any) -> Iterator[tuple[str, Any]]:
    """What a part is made of, by name: a module itself; what a partial passes on, what a function names, or an object's fields."""
    while isinstance(part, partial):
        yield from ((str(place), value) for place, value in enumerate(part.args))
        yield from part.keywords.items()
        part = part.func
    part = part.__self__ if inspect.ismethod(part) else inspect.unwrap(part)
    if isinstance(part, nn.Module):
        yield "", part
    elif inspect.isfunction(part):
        yield from ((name, part.__globals__[name]) for name in sorted(_names(part.__code__)) if name in part.__globals__)
        cells = zip(part.__code__.co_freevars, part.__closure__ or (), strict=True)
        yield from ((name, cell.cell_contents) for name, cell in cells if cell != CellType())  # an empty one has no contents
        yield from ((name, parameter.default) for name, parameter in inspect.signature(part).parameters.items())
    else:
        yield from getattr(part, "__dict__", {}).items()
        for kind in type(part).__mro__:
            slots = getattr(kind, "__slots__", ())
            yield from ((name, getattr(part, name, None)) for name in ([slots] if isinstance(slots, str) else slots))


def _names(code: CodeType) -> set[str]:
    """What a function's code looks up by name, and so does the code inside of it: comprehensions, functions."""
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def _origin(part: Any) -> str:
    """Where a part is defined: module, name, and a digest of that module's file."""
    part = _called(part)
    kind = part if hasattr(part, "__qualname__") else type(part)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    code = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file and Path(file).is_file() else "none"
    return f"{kind.__module__}:{kind.__qualname__}/{code}"


def _called(part: Any) -> Any:
    """What a `partial` calls, what a method is of, and anything else as it is."""
    while isinstance(part, partial):
        part = part.func
    return part.__self__ if inspect.ismethod(part) else part


def _short(part: Any) -> str:
    found = getattr(_called(part), "__name__", type(part).__name__)
    return found if found.isidentifier() else "wrapped"


def _path_digest(path: NoisePath) -> str:
    """A digest of a path's settings, or where it is no dataclass of two of its levels."""
    if dataclasses.is_dataclass(path):
        said = repr(path)
    else:
        levels = [f"{float(of(t)):.9g}" for t in path.levels(2) for of in (path.alpha, path.sigma)]
        said = f"{type(path).__qualname__} {path.end:g} {levels}"
    return f"sha256:{hashlib.sha256(said.encode()).hexdigest()}"
