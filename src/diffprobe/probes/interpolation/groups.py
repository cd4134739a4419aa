"""Which images belong together: scenes that share what is in them, or the parts of a folder or a manifest, with a prompt for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from diffprobe import images, rng, worlds
from diffprobe.errors import UserError, unknown
from diffprobe.images import Picture, Rendered
from diffprobe.worlds.attributes import COLOURS, DETAILS, SHAPES, SIZES, Attributes, caption
from diffprobe.worlds.scenes import held

WORLD = "world"
_SEED = 2024  # of the scenes, as of every set that is drawn
_RARE = 400  # scenes looked through for each that is wanted
_FIELDS = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "detail": DETAILS, "background": worlds.BACKGROUNDS}


@dataclass(frozen=True)
class Group:
    """Images of one kind, and the prompt that they are inverted and generated under."""

    name: str
    prompt: str
    sources: tuple[Picture, ...]


def groups(where: str, names: Sequence[str], count: int, prompt: str) -> list[Group]:
    """The groups `names` of a set, `count` images each; none named: all that a folder or a manifest has.

    A group of 'world' is what its scenes show, one or more words such as 'snow' or 'red circle', and its prompt says just that. Of
    a folder it is a folder in it, of a manifest a domain; `prompt` is then a sentence with '{group}' for its name. Of more images than
    `count` some are drawn by address. Raises UserError for a group that there is not, or that has fewer images.
    """
    if where == WORLD:
        return [Group(name, caption_of(name), _scenes(name, count)) for name in names]
    found: dict[str, list[Picture]] = {}
    for source in images.listed(where, f"'{WORLD}' for rendered scenes"):
        found.setdefault(source.domain, []).append(source)
    chosen = list(names) or sorted(found)
    for name in chosen:
        if name not in found:
            raise unknown(f"group of '{where}'", name, found)
        if len(found[name]) < count:
            raise UserError(f"the group '{name}' of '{where}' has {len(found[name])} images, not {count}: add some, or set a lower count")
    return [Group(name, prompt.replace("{group}", name), _some(name, found[name], count)) for name in chosen]


def caption_of(group: str) -> str:
    """What the world's captions say of a group: 'a thing in the snow', 'a red circle'. Raises UserError for any other word."""
    told = _told(group)
    neutral = {"shape": SHAPES[0], "colour": "red", "size": "small", "background": "grey", "detail": "none"}
    attributes = Attributes(**{**neutral, **told}, tone="colour", x=0.0, y=0.0, radius=0.4)
    return caption(attributes, told)


@lru_cache(maxsize=64)
def _scenes(group: str, count: int) -> tuple[Picture, ...]:
    """The first scenes that show all that a group's name says; only what they hold is drawn to find them, not the pictures."""
    told, found = _told(group), list[Picture]()
    for index in range(count * _RARE):
        shown = asdict(held(_SEED, index))
        if shown["tone"] == "colour" and all(shown[field] == word for field, word in told.items()):
            found.append(Rendered(_SEED, index))
            if len(found) == count:
                return tuple(found)
    raise UserError(f"only {len(found)} of {count * _RARE} scenes show '{group}', not {count}: name it by fewer words, or lower count")


def _told(group: str) -> dict[str, str]:
    """What the words of a group's name say of its scenes."""
    told = {}
    for word in group.split():
        field = next((field for field, words in _FIELDS.items() if word in words and word != "none"), None)
        if field is None:
            raise unknown("word for a group of scenes", word, [word for words in _FIELDS.values() for word in words if word != "none"])
        if field in told:
            raise UserError(f"the group '{group}' names two kinds of {field}: no scene shows both")
        told[field] = word
    if not told:
        raise UserError("a group of scenes needs a name: what they show, such as 'snow' or 'red circle'")
    return told


def _some(name: str, sources: Sequence[Picture], count: int) -> tuple[Picture, ...]:
    """So many of a group's images, drawn by address in an order in which a larger count keeps those of a smaller one."""
    order = rng.stream(f"interpolation.group.{name}").permutation(len(sources))[:count]
    return tuple(sources[place] for place in order)
