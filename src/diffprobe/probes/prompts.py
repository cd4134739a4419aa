"""Which prompts are asked: a list, a file, or a built-in set, each with what it is about."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from diffprobe import rng, worlds
from diffprobe.errors import UserError, unknown
from diffprobe.worlds.scenes import attributes_of

FILES = {".txt", ".csv", ".json"}
_NAMED = ("size", "colour", "shape", "detail", "background")
_RARELY = 0.3  # share of the scenes that leave an attribute unnamed, each for itself

#: A subject and what kind it is; places and media are crossed with it so that each subject meets five of each, and no pair twice.
SUBJECTS = {
    "a red bicycle": "thing",
    "an old lighthouse": "building",
    "a bowl of noodle soup": "food",
    "a sleeping fox": "animal",
    "a violinist in a green coat": "person",
    "a row of wooden boats": "vehicle",
    "a glass teapot": "thing",
    "a stone bridge": "building",
    "a stack of pancakes": "food",
    "two parrots": "animal",
    "a child flying a kite": "person",
    "a steam locomotive": "vehicle",
    "a grandfather clock": "thing",
    "a small white chapel": "building",
    "a basket of lemons": "food",
    "a tortoise": "animal",
    "an elderly gardener": "person",
    "a yellow taxi": "vehicle",
    "a telescope": "thing",
    "a windmill": "building",
}
PLACES = ("by the sea at dawn", "in a snowy forest", "on a busy street at night", "in a sunlit room", "in front of mountains")
MEDIA = ("a photograph of {}", "an oil painting of {}", "a pencil drawing of {}", "a watercolour of {}", "a 3D rendering of {}")


@dataclass(frozen=True)
class Prompt:
    """A prompt: the name by which runs are paired, its text, and its features, each a name and a value ("" where it has none)."""

    id: str
    text: str
    features: tuple[tuple[str, str], ...] = ()


def scenes(count: int | None) -> list[Prompt]:
    """Captions of the embedded world, all different: random attributes, of which each is named or left open."""
    found: dict[str, Prompt] = {}
    for index in range(100_000):
        if len(found) == (count or 100):
            break
        draw = rng.stream("consistency.scenes", index)
        attributes, _ = attributes_of(draw)
        named = [name for name in _NAMED if draw.random() >= _RARELY]
        text = worlds.caption(attributes, named)
        features = {name: getattr(attributes, name) if name in named else "" for name in _NAMED}
        if attributes.tone != "colour":
            features["colour"] = attributes.tone
        found.setdefault(text, Prompt(text, text, tuple(features.items())))
    return list(found.values())


def everyday(count: int | None) -> list[Prompt]:
    """Prompts for models of photographs and paintings: 20 subjects, each in five places and five media, a balanced design of 100."""
    found = []
    for turn in range(len(PLACES)):
        for index, (subject, kind) in enumerate(SUBJECTS.items()):
            place, medium = PLACES[(index + turn) % len(PLACES)], MEDIA[(index + 2 * turn) % len(MEDIA)]
            text = f"{medium.format(subject)} {place}"
            named = (("kind", kind), ("place", place), ("medium", medium.removesuffix(" of {}")))
            found.append(Prompt(text, text, named))
    return found[:count]


#: What a model that knows no words is asked.
WORDLESS = Prompt("no words", "")
PROMPT_SETS: dict[str, Callable[[int | None], list[Prompt]]] = {
    "scenes": scenes,
    "everyday": everyday,
    "none": lambda count: [WORDLESS],
}


def read_prompts(given: Sequence[str], count: int | None) -> list[Prompt]:
    """The prompts that `given` means: the name of a set or a file alone, or the prompts themselves; the first `count` of them.

    Files: .txt, a prompt a line; .csv with a column `prompt` and perhaps `id`, any other column a feature; .json, a list of texts
    or of objects with the same keys. Raises UserError for a file that is missing or lacks them, an empty or a doubled prompt, a mistyped
    set, or fewer prompts than `count`.
    """
    if len(given) == 1 and given[0] in PROMPT_SETS:
        found = PROMPT_SETS[given[0]](count)
    elif len(given) == 1 and Path(given[0]).suffix.lower() in FILES:
        found = _read(Path(given[0]))
    elif len(given) == 1 and get_close_matches(given[0].lower(), PROMPT_SETS, cutoff=0.8):
        raise unknown("set of prompts", given[0], PROMPT_SETS)
    else:
        found = [Prompt(text, text) for text in given]
    if count is not None and count > len(found):
        raise UserError(f"there are {len(found)} prompts, not {count}: ask for fewer, or leave count out for all")
    found = found[:count]
    if not found:
        raise UserError(f"'{given[0] if given else ''}' holds no prompt: give a list, a file ({', '.join(sorted(FILES))}), or a set")
    _once(found)
    return found


def _once(prompts: Iterable[Prompt]) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if not prompt.text.strip() and prompt is not WORDLESS:
            raise UserError(f"prompt '{prompt.id}' is empty: give it a text, or leave it out")
        if prompt.id in seen:
            raise UserError(f"the prompt '{prompt.id}' comes twice: remove one, or give each an id of its own (column `id`)")
        seen.add(prompt.id)


def _read(path: Path) -> list[Prompt]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts in {path} ({error}): give a text file in UTF-8") from error
    if path.suffix.lower() == ".txt":
        return [Prompt(line.strip(), line.strip()) for line in text.splitlines() if line.strip()]
    return [_prompt(row, path) for row in (_rows(text, path) if path.suffix.lower() == ".json" else csv.DictReader(io.StringIO(text)))]


def _rows(text: str, path: Path) -> list[Mapping[str, object]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}): give a list of prompts") from error
    if not isinstance(found, list) or not all(isinstance(row, str | dict) for row in found):
        raise UserError(f"{path} must hold a list of prompts, or of objects with the key `prompt`")
    return [{"prompt": row} if isinstance(row, str) else row for row in found]


def _prompt(row: Mapping[str, object], path: Path) -> Prompt:
    if not isinstance(row.get("prompt"), str):
        raise UserError(f"{path} has a row without `prompt`: it needs that column, and has {', '.join(map(str, row)) or 'none'}")
    text = str(row["prompt"]).strip()
    named = ((name, value) for name, value in row.items() if name not in ("prompt", "id") and isinstance(name, str))
    features = tuple((name, "" if value is None else str(value).strip()) for name, value in named)
    return Prompt(str(row.get("id") or text).strip(), text, features)


def words(texts: Sequence[str], fewest: int = 5, most: int = 40) -> list[str]:
    """Words that some texts have and others have not, at least `fewest` on either side; the `most` most even ones, in order."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in _words(text):
            counts[word] = counts.get(word, 0) + 1
    told = [word for word, count in counts.items() if fewest <= count <= len(texts) - fewest]
    return list(islice(sorted(told, key=lambda word: (abs(2 * counts[word] - len(texts)), word)), most))


def has(text: str, word: str) -> bool:
    return word in _words(text)


def _words(text: str) -> set[str]:
    return {word for word in "".join(letter if letter.isalnum() else " " for letter in text.lower()).split() if len(word) > 2}
