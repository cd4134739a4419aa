"""Instruments of one's own, by import path: a network, a class or a function that turns images into features or scores."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffprobe.adapters.published import digest_state
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.measures.precision import full_float32
from diffprobe.model import Embedder

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, eq=False)
class CustomEmbedder:
    """What someone brought: images [B, 3, H, W] in [0, 1] to features [B, D], float32 on the CPU whatever it gives."""

    name: str
    look: Callable[[Tensor], Tensor]
    device: torch.device
    fingerprint: str

    def __call__(self, images: Tensor) -> Tensor:
        """Raises UserError where what comes back is no matrix of one row an image."""
        with torch.no_grad(), full_float32():
            features = self.look(images.float().to(self.device))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"'{self.name}' must give features [{len(images)}, D] for {len(images)} images, not {found}")
        return features.float().cpu()


def is_import_path(name: str) -> bool:
    """Whether a name reads as 'package.module:attribute', of a package or of a module that is there."""
    if not _PATH.fullmatch(name):
        return False
    module = name.partition(":")[0]
    return "." in module or module in sys.modules or find_spec(module) is not None


def load_custom(name: str, options: LoadOptions) -> Embedder:
    """The embedder at an import path: an instance or a function, or a class or function without arguments that makes one.

    One that has a `fingerprint` is taken as it is. Raises UserError (exit code 4) where it cannot be imported or made.
    """
    look, source = bring(name, "embedder")
    if told(look) is not None:
        return cast(Embedder, look)
    return CustomEmbedder(name, *placed(name, look, source, options))


def bring(name: str, what: str) -> tuple[Any, str | None]:
    """What an import path names, or what a class or function without arguments there makes; and its source file.

    Raises UserError (exit code 4), which calls it `what`, where it cannot be imported, made or called.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        source = getattr(found, "__file__", None)
        for part in attribute.split("."):
            found = getattr(found, part)
        look = found() if inspect.isclass(found) or _makes(found) else found
    except Exception as error:  # it is somebody's code, which may raise anything
        why = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"cannot load the {what} '{name}' ({type(error).__name__}: {why}): is its folder on PYTHONPATH?", 4) from error
    if not callable(look):
        raise UserError(f"'{name}' ({type(look).__name__}) cannot be called: name a torch module, a class or a function", 4)
    return look, source


def told(look: object) -> str | None:
    """The fingerprint that an instrument gives itself, if it does."""
    given = getattr(look, "fingerprint", None)
    return given if isinstance(given, str) else None


def placed(name: str, look: Any, source: str | None, options: LoadOptions) -> tuple[Callable[[Tensor], Any], torch.device, str]:
    """What was brought, a module on the device and ready to look; the device; and the fingerprint."""
    device, _ = options.place()
    if isinstance(look, nn.Module):
        look = look.to(device).eval()
    return look, device, _fingerprint(name, look, source)


def _makes(found: object) -> bool:
    """Whether a function takes no argument that it needs, so that it gives the instrument and is not one."""
    needed = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    if not (inspect.isfunction(found) or inspect.ismethod(found)):
        return False
    parameters = inspect.signature(found).parameters.values()
    return not any(p.kind in needed and p.default is p.empty for p in parameters) and not any(
        p.kind is p.VAR_POSITIONAL for p in parameters
    )


def _fingerprint(name: str, look: object, source: str | None) -> str:
    """The import path, the weights ('none' without), the file that the path names, and the number format of the weights."""
    state = {key: value for key, value in look.state_dict().items() if isinstance(value, Tensor)} if isinstance(look, nn.Module) else {}
    weights = digest_state(state)[:16] if state else "none"
    code = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16] if source and Path(source).is_file() else "none"
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()}) or ["float32"]
    return f"custom/{name}/{weights}/{code}/{'+'.join(kinds)}"
