"""What controls at work in a deployed pipeline share: which calls of the network are the pipeline's own, and how it is left again."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

from diffprobe.adapters.pipelines import network_of
from diffprobe.adapters.schedulers import path_of, shown_ratio
from diffprobe.errors import UserError
from diffprobe.paths import NoisePath

#: The modules whose frames lie between a pipeline and the hooks of its network.
_MACHINERY = re.compile(r"(torch|accelerate|diffusers\.hooks|" + re.escape(__package__ or __name__) + r")(\.|$)")


class Calls:
    """The calls of a network that are this pipeline's own, as the hooks of one control see them.

    A network may serve another pipeline too, or a denoiser, also within this pipeline's callbacks, and their batches mean other
    things. So what asks must be the pipeline itself, with nothing between but the machinery of calling a network.
    """

    def __init__(self, pipe: Any, network: Any) -> None:
        self.pipe, self.network = pipe, network
        self.seen = 0
        self.names = list(inspect.signature(type(plain(network)).forward).parameters)[1:]
        self._scheduler, self._path = pipe.scheduler, path_of(pipe.scheduler)
        self._codes = {inspect.unwrap(vars(kind)["__call__"]).__code__ for kind in type(pipe).__mro__ if "__call__" in vars(kind)}

    def caller(self, network: Any) -> int | None:
        """The identity of the frame in which this pipeline asks; None where something else does, or where a copy is asked."""
        if network is not self.network:
            return None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and _MACHINERY.match(frame.f_globals.get("__name__", "")):
            frame = frame.f_back
        own = frame is not None and frame.f_code in self._codes and frame.f_locals.get("self") is self.pipe
        return id(frame) if own else None

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by their names; the first is the noisy sample."""
        return dict(zip(self.names, args, strict=False)) | kwargs

    def level(self, timestep: Any) -> tuple[NoisePath, float]:
        """The path of the scheduler that the pipeline has now, and sigma/alpha where it asks with `timestep`."""
        if self.pipe.scheduler is not self._scheduler:
            self._scheduler, self._path = self.pipe.scheduler, path_of(self.pipe.scheduler)
        return self._path, shown_ratio(self._scheduler, self._path, timestep)


class Applied:
    """A control at work in a pipeline, until `remove` or the end of a `with` block, which leave the pipeline as it was."""

    def __init__(self, calls: Calls, handles: Sequence[Any], control: tuple[str, str]) -> None:
        """`control`: what it is, with its article, and what a network does without it."""
        self._calls, self._handles, self._control = calls, tuple(handles), control

    def remove(self) -> None:
        """Let the pipeline work as it did before. Harmless when it does already.

        Raises UserError where the pipeline's network was replaced meanwhile, so that the control no longer acted; warns
        (RuntimeWarning) where the pipeline did not call its network once.
        """
        (pipe, network, seen), (name, without) = self._end(), self._control
        if pipe is None:
            return
        now, bare = network_of(pipe), name.partition(" ")[2]
        if now is not None and network not in (now, plain(now)):
            raise UserError(
                f"the network of this pipeline was replaced while {name} was at work, and the new one {without}: "
                f"replace the network first, then apply the {bare}"
            )
        if not seen:
            told = f"the {bare} never acted: this {type(pipe).__name__} did not call its network between apply and remove"
            warnings.warn(told, RuntimeWarning, stacklevel=2)

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.remove()
        else:
            self._end()

    def _end(self) -> tuple[Any, Any, int]:
        """Take the hooks away; what they acted in and how often, None and None where they are away already."""
        for handle in self._handles:
            handle.remove()
        found = self._calls.pipe, self._calls.network, self._calls.seen
        self._calls.pipe = self._calls.network = None  # copies of the network keep the hooks, and should keep nothing else
        return found


def network_in(pipe: Any) -> Any:
    """The network of a diffusers pipeline; raises UserError for what is none."""
    if not hasattr(pipe, "scheduler") or not (hasattr(pipe, "unet") or hasattr(pipe, "transformer")):
        raise UserError(f"a {type(pipe).__name__} is no diffusers pipeline: give the pipeline itself, such as model.generator.pipe")
    return network_of(pipe)


def at_work(pipe: Any, network: Any, kind: type[Any]) -> bool:
    """Whether hooks of this kind, which keep their `calls`, act in this pipeline already."""
    hooks = [hook for part in {network, plain(network)} for hook in part._forward_hooks.values()]
    owners = [getattr(inspect.unwrap(hook), "__self__", None) for hook in hooks]
    return any(isinstance(owner, kind) and owner.calls.pipe is pipe for owner in owners)


def plain(network: Any) -> Any:
    """The network inside what `torch.compile` returns."""
    return getattr(network, "_orig_mod", network)
