"""Pictures as users have them, to tensors; and the choice of a few among many."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from diffprobe import rng, worlds
from diffprobe.errors import UserError
from diffprobe.manifest import Source, digest, digest_of, read, read_manifest
from diffprobe.worlds.foreign import KINDS, Foreign, Kind

__all__ = [
    "EXTENSIONS",
    "PIXEL_LIMIT",
    "Drawn",
    "Picture",
    "Rendered",
    "Source",
    "caption",
    "content",
    "digest",
    "domain",
    "drawn",
    "farthest_points",
    "find",
    "is_drawn",
    "label",
    "listed",
    "load",
    "name",
    "read_manifest",
    "scene",
    "sets",
    "stratified",
]

EXTENSIONS = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
PIXEL_LIMIT = 100_000_000
MANIFESTS = (".json", ".jsonl", ".csv")
_SHOWN = 10  # faults told in one message
_WORLD, _COUNT = 2024, 100  # the seed of sets that are drawn, and how many of one where no count is given
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Rendered:
    """Scene number `index` of the embedded world `world_seed`; its domain and caption are known from `scene`."""

    world_seed: int
    index: int
    backgrounds: tuple[str, ...] = tuple(worlds.BACKGROUNDS)


@dataclass(frozen=True)
class Drawn:
    """Picture number `index` of the seed `world_seed` that is no scene; `kind` says of which (`worlds.foreign`)."""

    kind: Kind
    world_seed: int
    index: int


Picture = Source | Rendered | Drawn


@lru_cache(maxsize=256)
def scene(source: Rendered) -> worlds.Scene:
    """The rendered scene: its image, attributes and caption."""
    return worlds.scenes(1, source.world_seed, backgrounds=source.backgrounds, start=source.index)[0]


@lru_cache(maxsize=256)
def drawn(source: Drawn) -> Foreign:
    """The picture that is no scene, and its caption."""
    return worlds.foreign(1, source.world_seed, kind=source.kind, start=source.index)[0]


def name(source: Picture) -> str:
    """How a record names an image: its path as given, or what it is with its number."""
    if isinstance(source, Source):
        return source.path
    return f"{'scene' if isinstance(source, Rendered) else source.kind} {source.world_seed}/{source.index}"


def content(source: Picture) -> str:
    """What an image is, whatever it is called: the digest of its file, or its number."""
    return source.digest if isinstance(source, Source) else name(source)


def domain(source: Picture) -> str:
    """The part of its set that an image belongs to: a file's domain, a scene's kind of background, or the kind of what is no scene."""
    if isinstance(source, Drawn):
        return source.kind
    return source.domain if isinstance(source, Source) else scene(source).attributes.domain


def caption(source: Picture) -> str:
    """The image's own caption; raises UserError where it is not known."""
    if isinstance(source, Source):
        if source.caption is None:
            raise UserError(f"{source.path} has no caption: add one to the manifest, or leave the prompt set 'caption' out")
        return source.caption
    return scene(source).caption if isinstance(source, Rendered) else drawn(source).caption


def load(sources: Sequence[Picture], size: int, *, crop: bool = True) -> Tensor:
    """Images [B, 3, size, size] float32 in [0, 1], resized from full precision, bilinear with antialiasing.

    The orientation of EXIF is applied, transparency is laid over white, grey and palette and CMYK become RGB; values are taken
    as sRGB (embedded colour profiles are not applied) and animations by their first frame. With `crop` the central square is
    taken, else the picture is squeezed to one. Raises UserError naming a file that is unreadable, changed or too large.
    """
    if not sources:
        return torch.zeros(0, 3, size, size)
    return torch.cat([_resized(_pixels(source), size, crop) for source in sources])


def find(folder: Path | str) -> list[Source]:
    """All images below a folder, sorted by path; the domain is the first folder's name, or "all" for what lies at the top.

    Hidden files and folders, and other extensions, are passed over. Raises UserError for a file with an image's extension
    whose header is none (its pixels are read by `load`), and where there is no image at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"'{folder}' is no folder: give one with images in it")
    found, faults = [], []
    for path in sorted(_walk(folder)):
        try:
            found.append(_found(path, folder))
        except UserError as fault:
            faults.append(str(fault))
    if faults:  # all at once, so that a folder is put in order in one go
        rest = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError("; ".join(faults[:_SHOWN]) + rest)
    if not found:
        raise UserError(f"no image below '{folder}': put files there that end in {', '.join(sorted(EXTENSIONS))}")
    return found


def listed(where: str, otherwise: str) -> list[Source]:
    """The images of a folder or of a manifest; raises UserError where there are none, which ends with what else may be given."""
    if os.path.isdir(where):
        return find(where)
    if Path(where).suffix in MANIFESTS:
        return read_manifest(where)
    raise UserError(f"no images at '{where}': give a folder, a manifest ({', '.join(MANIFESTS)}), or {otherwise}")


def sets(spec: str, count: int | None) -> tuple[str, list[Picture]]:
    """Label and images of a set by name: 'world', one of `worlds.foreign`'s kinds, a folder, a manifest, or '<label>=<any of these>'.

    Without a label it has its name, or that of the folder. `count` None takes all of a folder, or 100. Of more files than `count` some
    are drawn by address, in an order in which a larger count keeps those of a smaller one. Raises UserError.
    """
    if count is not None and count < 1:
        raise UserError(f"count must be at least 1, not {count}")
    _, where = _parts(spec)
    if where == "world":
        return label(spec), [Rendered(_WORLD, index) for index in range(count or _COUNT)]
    kind = next((kind for kind in KINDS if kind == where), None)
    if kind is not None:
        return label(spec), [Drawn(kind, _WORLD, index) for index in range(count or _COUNT)]
    files = listed(where, f"one of world, {', '.join(KINDS)}")
    if count is not None and count < len(files):
        files = [files[place] for place in rng.stream("images.sets").permutation(len(files))[:count]]
    return label(spec), [*files]


def label(spec: str) -> str:
    """What a set is called, as `sets` has it, from its words alone: a record's report is the same wherever it is made again.

    Raises UserError where one side of the sign is empty.
    """
    name, where = _parts(spec)
    path = Path(where)
    return name or (path.parent if path.suffix in MANIFESTS else path).name or where


def is_drawn(spec: str) -> bool:
    """Whether a name is that of a set that is drawn here, and no place of files."""
    return spec == "world" or spec in KINDS


def _parts(spec: str) -> tuple[str, str]:
    """The label that a spec gives ("" where it gives none), and the set itself; a folder whose name holds the sign is './a=b'."""
    given, equals, rest = spec.partition("=")
    if not equals or "/" in given:
        return "", spec
    if not (given.strip() and rest.strip()):
        raise UserError(f"'{spec}' lacks a side: give '<label>=<images>', such as 'cats=photos/cats'")
    return given.strip(), rest.strip()


def farthest_points(features: npt.ArrayLike, k: int, seed: int) -> list[int]:
    """k indices of features [n, D], each the farthest from those before it (Gonzalez 1985); the first is drawn from the seed."""
    points = np.asarray(features, np.float64)
    if points.ndim != 2 or not 0 <= k <= len(points) or not np.isfinite(points).all():
        raise ValueError(f"cannot choose {k} of features with shape {points.shape}: give finite [n, D] with n >= k")
    chosen = [int(rng.stream("images.farthest", seed).integers(len(points)))] if k else []
    nearest = np.full(len(points), np.inf)
    while len(chosen) < k:
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(1))
        nearest[chosen] = -1  # also among duplicates, none is taken twice
        chosen.append(int(np.argmax(nearest)))
    return chosen


def stratified(sources: Sequence[Source], per_domain: int, features: npt.ArrayLike | None, seed: int) -> list[Source]:
    """The same number from every domain, in the order of `sources`: diverse by their features [n, D], or drawn where there are none.

    Raises UserError for a domain with fewer.
    """
    chosen: list[int] = []
    for domain in sorted({source.domain for source in sources}):
        members = np.array([i for i, source in enumerate(sources) if source.domain == domain])
        if len(members) < per_domain:
            raise UserError(
                f"the domain '{domain}' has {len(members)} images, not {per_domain}: ask for {len(members)} a domain or add some"
            )
        if features is None:
            picked = rng.stream(f"images.stratified.{domain}", seed).permutation(len(members))[:per_domain].tolist()
        else:
            picked = farthest_points(np.asarray(features)[members], per_domain, seed)
        chosen += members[picked].tolist()
    return [sources[i] for i in sorted(chosen)]


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS)


def _found(path: Path, folder: Path) -> Source:
    data, parts = read(path), path.relative_to(folder).parts
    _opened(data, str(path)).close()
    return Source(str(path), digest_of(data), parts[0] if len(parts) > 1 else "all")


def _opened(data: bytes, name: str) -> Image.Image:
    """The picture with its header read, small enough to be decoded; UserError naming the file otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, judged below, and of odd metadata, which is not used
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is no image that can be read ({len(data)} bytes): replace it or take it out") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{name} is damaged ({error}): replace it or take it out") from error
    if image.width * image.height > PIXEL_LIMIT:
        raise _too_large(name)
    return image


def _too_large(name: str) -> UserError:
    return UserError(f"{name} has more than {PIXEL_LIMIT // 10**6} million pixels: scale it down or take it out")


def _pixels(source: Picture) -> npt.NDArray[np.float32]:
    """[H, W, 3] in [0, 1]."""
    if not isinstance(source, Source):
        found = scene(source) if isinstance(source, Rendered) else drawn(source)
        return found.image.astype(np.float32) / np.float32(255)
    data = read(source.path)
    if digest_of(data, source.digest.partition(":")[0]) != source.digest:
        raise UserError(f"{source.path} has changed since it was listed: restore it, or start a new run")
    image = _opened(data, source.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _rgb(ImageOps.exif_transpose(image), source.path)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UserError(f"{source.path} is damaged ({error}): replace it or take it out") from error


def _rgb(image: Image.Image, name: str) -> npt.NDArray[np.float32]:
    if image.mode in _DEEP or image.mode in ("I", "F"):
        grey = np.asarray(image).astype(np.float32)
        if image.mode not in _DEEP and (image.mode == "F" or grey.min() < 0 or grey.max() > 65535):
            raise UserError(f"{name} has pixels of 32 bits, whose range is unknown: save it with 8 or 16 bits")
        return np.repeat(grey[..., None] / np.float32(65535), 3, axis=-1)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA")).astype(np.float32) / np.float32(255)
        colour, cover = rgba[..., :3], rgba[..., 3:]
        return np.asarray(colour * cover + (1 - cover), np.float32)
    return np.asarray(image.convert("RGB")).astype(np.float32) / np.float32(255)


def _resized(pixels: npt.NDArray[np.float32], size: int, crop: bool) -> Tensor:
    if crop:
        height, width, _ = pixels.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    if image.shape[-2:] == (size, size):
        return image
    return torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
