"""Where weights lie, where they are placed, and what they are: a folder or a hub id to a path, and the digest of its content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread

import torch
from safetensors import SafetensorError, safe_open

from diffprobe.errors import UserError

SUMS = "SHA256SUMS"
#: A weight file of a variant, such as "fp16", by its name.
VARIANT = re.compile(r"\.([a-z]\w*)(?:-\d+-of-\d+)?\.safetensors$")
#: Variants that repositories on the hub have, of which only the one asked for is fetched.
VARIANTS = ("fp16", "bf16", "fp8", "non_ema")
#: What no adapter reads of a repository.
UNREAD = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.msgpack", "*.h5", "*.ot", "*.onnx", "*.onnx_data", "*.pb", "*.gguf", "*openvino*")
_BLOB = re.compile(r"[0-9a-f]{64}")


#: Devices that are manners of placing: parts moved to the accelerator while they run, layer by layer, or spread over several.
MANNERS = ("offload", "offload-layers", "balanced")
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadOptions:
    """How weights are found and placed. `device` is a torch device, "auto", or one of MANNERS, which need an accelerator.

    `dtype` None: float32 on the CPU, bfloat16 on an accelerator that has it and float16 on one that has not.
    """

    device: str = "auto"
    dtype: str | None = None
    revision: str | None = None
    variant: str | None = None
    local_files_only: bool = False

    @property
    def manner(self) -> str | None:
        """Which of MANNERS, if any."""
        return self.device if self.device in MANNERS else None

    def place(self) -> tuple[torch.device, torch.dtype]:
        """The device and the number format of the networks; raises UserError where either is not to be had."""
        there = torch.cuda.is_available()
        name = ("cuda" if there else "cpu") if self.device == "auto" else "cuda" if self.manner else self.device
        if name.startswith("cuda") and not there:
            needs = "needs an accelerator, and there is none" if self.manner else "is not available"
            raise UserError(f"device '{self.device}' {needs} here: use --device cpu", exit_code=4)
        if self.dtype is not None and self.dtype not in FORMATS:
            raise UserError(f"unknown dtype '{self.dtype}': choose from {', '.join(FORMATS)}")
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise UserError(f"unknown device '{name}': use cpu, cuda or cuda:<number>, or {', '.join(MANNERS)}") from error
        brief = "bfloat16" if not there or torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        dtype = FORMATS[self.dtype or ("float32" if device.type == "cpu" else brief)]
        _check_format(device, dtype)
        return device, dtype


def _check_format(device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError where a device does not compute in a number format: tried, since no table of devices is complete."""
    if dtype == torch.float32 or device.type == "meta":
        return
    name = next(name for name, known in FORMATS.items() if known == dtype)
    native = device.type != "cuda" or dtype != torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        x = torch.ones(1, 4, 8, 8, device=device, dtype=dtype)
        x = torch.nn.functional.conv2d(x, torch.ones(4, 4, 3, 3, device=device, dtype=dtype), padding=1)
        torch.nn.functional.scaled_dot_product_attention(x, x, x)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{device}' does not compute in {name}: use another --dtype or float32", exit_code=4) from error
    if not native:
        raise UserError(f"device '{device}' only emulates {name}: use float16 or float32", exit_code=4)


def resolve(
    spec: str, revision: str | None = None, local_files_only: bool = False, variant: str | None = None
) -> tuple[Path, dict[str, str]]:
    """The folder of a model and where it came from. A hub id becomes its snapshot, whose commit is recorded.

    Of a repository on the hub only what is read is fetched: no copies for other frameworks, no other variants, and of a pipeline the
    folders of its parts.
    HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE are honoured. Raises UserError (exit code 4) where it can be neither found nor fetched.
    """
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return folder, {"source": str(spec)}
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", spec) or spec.startswith("."):
        raise UserError(
            f"no model '{spec}': give 'embedded', 'exact:<name>', a folder of a saved pipeline, or a hub id such as 'owner/name'"
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    fetch = partial(huggingface_hub.snapshot_download, spec, revision=revision, local_files_only=local_files_only)
    try:
        parts = _parts(Path(fetch(allow_patterns=["model_index.json"])))
        wanted = ["*.json", "diffusion_pytorch_model*.safetensors", *(f"{part}/*" for part in parts)] if parts else None
        other = [f"*.{name}.*" for name in VARIANTS if name != variant]
        path = Path(fetch(allow_patterns=wanted, ignore_patterns=[*UNREAD, *other]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"'{spec}' is neither a folder nor in the cache, and the hub did not give it ({type(error).__name__}): "
            f"run `hf download {spec}` on a connected machine and copy the cache, or give a folder",
            exit_code=4,
        ) from error
    return path, {"source": spec, "commit": path.name}


def _parts(folder: Path) -> list[str]:
    """The parts that a pipeline's index names; none where there is no index."""
    index = folder / "model_index.json"
    content = json.loads(index.read_text()) if index.is_file() else {}
    return [name for name, part in content.items() if isinstance(part, list)]


@contextmanager
def quiet() -> Iterator[None]:
    """Load without the libraries' progress bars and notes; what they were set to comes back."""
    import diffusers
    import transformers

    logs = (diffusers.utils.logging, transformers.utils.logging)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (verbosity, bars) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


def digest_folder(folder: Path, variant: str | None = None) -> str:
    """sha256 over the names and contents of a folder's own weight files (safetensors); hub blobs already carry theirs."""
    total = hashlib.sha256()
    for file in weight_files(folder, variant):
        content = digest_file(file).removeprefix("sha256:")
        total.update(f"{file.relative_to(folder).as_posix()}:{content}\n".encode())
    return f"sha256:{total.hexdigest()}"


class Identity(Mapping[str, str]):
    """What identifies a model loaded from a folder. The digest of its weights is computed beside all else, and waited for when it is read.

    Hashing a file takes longer than mapping it into memory, so that loading would cost ten times what it needs.
    """

    def __init__(self, folder: Path, known: Mapping[str, str], variant: str | None = None) -> None:
        """`known`: everything else. Raises UserError where the folder holds no weights."""
        weight_files(folder, variant)
        self._known = {"weights": "", **known}
        self._found: Future[str] = Future()
        Thread(target=self._compute, args=(folder, variant), name="diffprobe-digest", daemon=True).start()

    def __getitem__(self, name: str) -> str:
        return self._found.result() if name == "weights" else self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return repr(dict(self))

    def _compute(self, folder: Path, variant: str | None) -> None:
        try:
            self._found.set_result(digest_folder(folder, variant))
        except BaseException as error:  # whoever waits is told
            self._found.set_exception(error)


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files below a folder that are its own, in order; raises UserError where there is none.

    Not those of another variant than the one asked for, and of a pipeline's folder, which has its weights in the folders of its
    parts, not what lies beside these: whole checkpoints in one file, which are not read.
    """
    found = sorted(folder.rglob("*.safetensors"))
    wanted = [file for file in found if (other := VARIANT.search(file.name)) is None or other[1] == variant]
    files = wanted or found
    parts = [file for file in files if file.parent != folder]
    if parts and (folder / "model_index.json").is_file():
        files = parts
    if not files:
        raise UserError(
            f"{folder} holds no .safetensors file: save the pipeline with safe_serialization=True (pickled weights are never read)"
        )
    return files


def digest_file(file: Path) -> str:
    """sha256 of a file's content; a blob of the hub's cache already carries it as its name."""
    target = file.resolve()
    return f"sha256:{target.name if _BLOB.fullmatch(target.name) else _digest(target)}"


def damage(folder: Path) -> str | None:
    """What is wrong with the first weight file below a folder that cannot be read, with its digest; None where all can be."""
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            told = str(error).removeprefix("Error while deserializing header: ")
            return f"{file} is truncated or damaged ({told}; {file.stat().st_size} bytes, sha256:{_digest(file)}): fetch it again"
    return None


def check_digests(folder: Path) -> None:
    """Compare the weight files of a folder with its `SHA256SUMS`, where it has one; raises UserError that names the first other one."""
    sums = folder / SUMS
    for line in sums.read_text().splitlines() if sums.is_file() else ():
        expected, _, name = line.replace(" *", "  ", 1).partition("  ")
        if not name.endswith(".safetensors"):
            continue
        file = folder / name
        found = f"sha256:{_digest(file)}" if file.is_file() else "missing"
        if found != f"sha256:{expected}":
            raise UserError(f"{file} ({found}) is not the file that {SUMS} names (sha256:{expected}): fetch or install it again", 4)


def write_digests(folder: Path) -> None:
    """Record the weight files of a folder in its SHA256SUMS, which `sha256sum -c` reads too."""
    files = sorted(folder.rglob("*.safetensors"))
    (folder / SUMS).write_text("".join(f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
