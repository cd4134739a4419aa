"""Published state dicts: where they lie, whether they are the files that their names promise, and networks filled from them."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffprobe.adapters.weights import digest_file
from diffprobe.errors import UserError

Network = TypeVar("Network", bound=nn.Module)
_PROMISED = re.compile(r"-([0-9a-f]{8,})\.pth$")  # torch hub's way: the name ends with the first digits of the sha256


def checkpoints() -> Path:
    """The folder in which torch hub keeps state dicts; TORCH_HOME and XDG_CACHE_HOME are honoured."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def read_state(file: Path, published: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file without running what it may hold.

    A file that bears one of the `published` names must have the digest in it. Raises UserError (exit code 4).
    """
    promised = _PROMISED.search(file.name) if file.name in published else None
    found = digest_file(file).removeprefix("sha256:") if promised else ""
    if promised and not found.startswith(promised[1]):
        raise UserError(f"{file} is not the file of that name (sha256 {found[:16]}, not {promised[1]}): fetch it again", 4)
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        told = str(error).strip().partition("\n")[0][:160] or type(error).__name__
        raise UserError(f"cannot read {file} ({told}): fetch it again, or save a plain state dict", 4) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} is no state dict: save `module.state_dict()`, not the module or a checkpoint around it", 4)
    return dict(state)


def fill(build: Callable[[], Network], state: Mapping[str, Tensor], file: Path) -> Network:
    """A network with the weights of a state dict as float32, ready to look; raises UserError that names the first thing that does not fit.

    Nothing is initialised at random on the way, so no generator moves.
    """
    with torch.device("meta"):
        network = build()
    wanted, given = network.state_dict(), {name: value for name, value in state.items() if not _counts(name)}
    for name, value in wanted.items():
        if _counts(name):
            given[name] = torch.zeros((), dtype=torch.long)  # batches seen in training: unused, and missing in older files
        elif name not in given:
            raise UserError(f"{file} lacks '{name}': it holds another network", 4)
        elif given[name].shape != value.shape:
            raise UserError(f"'{name}' of {file} is {list(given[name].shape)}, not {list(value.shape)}: it holds another network", 4)
        else:
            given[name] = given[name].to(torch.float32)
            if not bool(given[name].isfinite().all()):
                raise UserError(f"'{name}' of {file} has numbers that are not finite: it is damaged, fetch it again", 4)
    surplus = sorted(given.keys() - wanted.keys())
    if surplus:
        raise UserError(f"{file} has '{surplus[0]}', which this network lacks: it holds another network", 4)
    network.load_state_dict(given, assign=True)
    return network.eval().requires_grad_(False)


def digest_state(state: Mapping[str, Tensor]) -> str:
    """sha256 over the names, types, shapes and bytes of tensors, in the order of their names: the same from any file format."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"{name}:{value.dtype}:{list(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _counts(name: str) -> bool:
    return name.endswith(".num_batches_tracked")
