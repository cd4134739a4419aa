"""What is under test and what looks at it: the protocols that adapters fulfil and probes see."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

from torch import Tensor

from diffprobe.paths import NoisePath

T = TypeVar("T")


class Denoiser(Protocol):
    """D(x, t, cond) -> E[x_0 | x_t]. `x` is [B, ...], `t` a scalar or [B] in the path's own units."""

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor: ...


@runtime_checkable
class StatedCondition(Protocol):
    """A condition of several parts, one row a sample, whose floating `states` [B, tokens, width] can be put in place of by others."""

    @property
    def states(self) -> Tensor: ...

    def with_states(self, states: Tensor) -> StatedCondition: ...


@runtime_checkable
class ToldGuidance(Protocol):
    """A denoiser whose network is told the scale of its guidance instead of being asked twice; `told` is itself where none is."""

    def told(self, scale: float) -> Denoiser: ...


class Codec(Protocol):
    """Between images [B, 3, H, W] in [0, 1] and latents [B, C, h, w] in the denoiser's scale; `decode` is unclamped and differentiable."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class Level(NamedTuple):
    """Where an edit starts: the steps executed, the starting time, alpha(t) and sigma = sigma(t)/alpha(t) there.

    No step executed: `steps` 0, `t` None, alpha 1, sigma 0. Of UNTOLD, which an editor gives that does not say, nothing means anything.
    """

    steps: int
    t: float | None
    alpha: float
    sigma: float

    @property
    def told(self) -> bool:
        """Whether the editor says where it starts."""
        return not math.isnan(self.sigma)


UNTOLD = Level(0, None, math.nan, math.nan)


class Edited(NamedTuple):
    """What a deployed editor gave: `images` [B, 3, H, W] unclamped, `latents` before decoding (None where it has none).

    `guided`: whether guidance was active, None where the editor does not say.
    """

    images: Tensor
    latents: Tensor | None
    level: Level
    guided: bool | None


@dataclass(frozen=True)
class EditSettings:
    """How an editor is called; the names are those of diffusers."""

    strength: float
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str = ""


class ImageEditor(Protocol):
    """The deployed image-to-image pipeline itself. `size` is its native side in pixels, `strength_axis` false where it ignores strength.

    That of a model without a codec edits the images themselves, [B, 3, H, W] in [0, 1], where others edit latents.
    """

    @property
    def size(self) -> int: ...

    @property
    def strength_axis(self) -> bool: ...

    def level(self, strength: float, num_inference_steps: int) -> Level: ...

    def edit(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings) -> Edited:
        """Edit encoded images [B, C, h, w]: one prompt and one seed a sample."""
        ...


@dataclass(frozen=True)
class GenerateSettings:
    """How a generator is called; the names are those of diffusers. `height` and `width` are pixels; None is the pipeline's own choice.

    A negative prompt of None and an empty one differ where a pipeline puts zeros for none (Stable Diffusion XL).
    """

    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None


class ImageGenerator(Protocol):
    """The deployed text-to-image pipeline itself: one prompt and one seed a sample to images [B, 3, H, W] in [0, 1]."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings) -> Tensor: ...


class Embedder(Protocol):
    """Images [B, 3, H, W] in [0, 1] to features [B, D] float32; owns its resizing and normalisation."""

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor: ...


class Distance(Protocol):
    """How far apart two image batches [B, 3, H, W] in [0, 1] are to a trained eye: [B] float32, 0 for equal images (LPIPS)."""

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...


class Scorer(Protocol):
    """Images [B, 3, H, W] in [0, 1] to one number each, [B] float32: a quality that an instrument of its own tells."""

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor: ...


@runtime_checkable
class TextEmbedder(Protocol):
    """An embedder that puts texts in the same space: [N] texts to [N, D] float32."""

    def embed_text(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Model:
    """What is under test. A capability that it lacks is None. `identity` names the weights (a digest) and where they came from.

    `shape` is that of one x of the denoiser, such as (4, 64, 64): what a trajectory from pure noise needs to begin. `checkpoints`
    are the same model at other moments of its training, by name in their order, each loaded when it is asked for. `facts` say what
    a reader of its numbers should know and no digest shows, such as its scheduler; they are no part of what it is. A `wordless` model can
    be asked for nothing in particular.
    """

    name: str
    path: NoisePath | None = None
    denoiser: Denoiser | None = None
    codec: Codec | None = None
    condition: Callable[[Sequence[str]], Any] | None = None
    editor: ImageEditor | None = None
    generator: ImageGenerator | None = None
    device: str = "cpu"
    identity: Mapping[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    checkpoints: Mapping[str, Callable[[], Model]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    wordless: bool = False

    @property
    def capabilities(self) -> frozenset[str]:
        """The names of the capabilities that this model has."""
        names = ("path", "denoiser", "codec", "condition", "editor", "generator")
        return frozenset(name for name in names if getattr(self, name) is not None)


class Memo:
    """The last few things that a worker computed, so that neighbouring cells share them; what a cell measures never depends on it."""

    def __init__(self, size: int = 4) -> None:
        self._kept: OrderedDict[Hashable, object] = OrderedDict()
        self._size = size

    def __call__(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value kept under `key`, computed where it is not there."""
        if key not in self._kept:
            self.keep(key, compute())
        self._kept.move_to_end(key)
        return cast(T, self._kept[key])

    def keep(self, key: Hashable, value: object) -> None:
        """Keep `value`, and let the eldest go where there is no more room."""
        self._kept[key] = value
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)


@dataclass(frozen=True, eq=False)
class Rig:
    """What one worker holds: the model and its instruments.

    They turn images into features (`embedders`), compare two (`distances`) or give each a number (`scorers`). `batch_size`, how many
    images run at once, is no part of a cell's identity.
    """

    model: Model
    embedders: Mapping[str, Embedder]
    batch_size: int = 16
    memo: Memo = field(default_factory=Memo)
    distances: Mapping[str, Distance] = field(default_factory=dict)
    scorers: Mapping[str, Scorer] = field(default_factory=dict)

    @property
    def capabilities(self) -> frozenset[str]:
        """Those of the model, and "embedder" where something looks at single images."""
        return self.model.capabilities | ({"embedder"} if self.embedders else set())

    @property
    def fingerprints(self) -> dict[str, str]:
        """Every instrument by its name and fingerprint."""
        instruments: dict[str, Embedder | Distance | Scorer] = {**self.embedders, **self.distances, **self.scorers}
        return {name: instrument.fingerprint for name, instrument in instruments.items()}
