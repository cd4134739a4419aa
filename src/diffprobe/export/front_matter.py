"""The `model-index` of a Markdown file: our results in it are replaced, and everything else stays as it is, to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from diffprobe.errors import UserError

KEY = "model-index"
#: A metric is ours where its args have this key.
MARK = "diffprobe"
_DEPTH = ("results", "metrics")
Results = list[dict[str, Any]]


class _Cut(NamedTuple):
    start: int
    end: int


def with_results(text: str, name: str, results: Results) -> str:
    """The Markdown `text` with these entries of a model-index, of a model of this `name`, in place of our earlier ones.

    Where the file has results of others, ours follow those of the first model. Where it has no metadata, a block is put before it.
    Raises UserError for metadata that cannot be read, or cannot be changed in part.
    """
    found, line_break = REGEX_YAML_BLOCK.search(text), "\r\n" if "\r\n" in text else "\n"
    if found is None:
        block = _changed("", name, results, line_break)
        return f"---{line_break}{block}---{line_break}{text}" if block else text
    before = found.group(2) + line_break
    after = _changed(before, name, results, line_break)
    _check(before, after)
    return text[: found.start(2)] + after.removesuffix(line_break) + text[found.end(2) :]


def _changed(block: str, name: str, results: Results, line_break: str) -> str:
    """The YAML `block`, whose every line ends with a break, with our results."""
    root = _composed(block)
    pair = next(((key, value) for key, value in root.value if key.value == KEY), None) if root else None
    fresh = _dumped({KEY: [{"name": name, "results": results}]}, line_break) if results else ""
    if pair is None:
        return block + fresh
    if pair[1].tag == "tag:yaml.org,2002:null":
        cuts, ours = list[_Cut](), True
    else:
        cuts, ours = _cuts(block, _sequence(pair[1]), _DEPTH)
    if ours:
        start, end = _line(block, pair[0].start_mark.index), _next_line(block, _last(pair[1]))
        return block[:start] + fresh + block[end:]
    place, added = _addition(block, pair[1], cuts)
    edits = [(cut.start, cut.end, "") for cut in cuts]
    if results:
        edits.append((place, place, "".join(added + line for line in _dumped(results, line_break).splitlines(keepends=True))))
    for start, end, text in sorted(edits, reverse=True):
        block = block[:start] + text + block[end:]
    return block


def _cuts(block: str, items: yaml.SequenceNode, depth: Sequence[str]) -> tuple[list[_Cut], bool]:
    """The lines of our entries in a list of models, results or metrics, and whether nothing else is in it."""
    cuts, all_ours = list[_Cut](), True
    for item in items.value:
        inner = _get(item, depth[0]) if depth else None
        found, ours = list[_Cut](), _is_ours(item)
        if isinstance(inner, yaml.SequenceNode) and inner.value:
            found, ours = _cuts(block, inner, depth[1:])
        all_ours &= ours
        cuts += [_Cut(_dash(block, item), _next_line(block, _last(item)))] if ours else found
    return cuts, all_ours


def _addition(block: str, models: yaml.SequenceNode, cuts: Sequence[_Cut]) -> tuple[int, str]:
    """Where our results go among others', and the indentation of that list: after those of the first model that is not ours alone."""
    for model in models.value:
        results = _get(model, "results")
        if isinstance(results, yaml.SequenceNode) and results.value and not any(c.start <= model.start_mark.index < c.end for c in cuts):
            dash = _dash(block, results.value[0])
            return _next_line(block, _last(results)), block[dash : block.index("-", dash)]
    raise UserError(f"the {KEY} of the card has a model without results: mend it, or leave --card out")


def _is_ours(metric: yaml.Node) -> bool:
    args = _get(metric, "args")
    return args is not None and _get(args, MARK) is not None


def _get(node: yaml.Node, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)


def _last(node: yaml.Node) -> int:
    """Where the text of a node ends; the parser's own mark of a block is where the next one begins, behind comments."""
    if isinstance(node, yaml.CollectionNode) and node.value and not node.flow_style:
        item = node.value[-1]
        return _last(item[1] if isinstance(node, yaml.MappingNode) else item)
    return int(node.end_mark.index)


def _dash(block: str, item: yaml.Node) -> int:
    """The beginning of the line on which an item of a list begins; UserError where it has no line to itself."""
    dash = len(block[: item.start_mark.index].rstrip()) - 1
    start = _line(block, dash)
    if dash < 0 or block[start : dash + 1].strip() != "-":
        raise UserError(f"the {KEY} of the card is not written one item a line, so that it cannot be changed in part: write it so")
    return start


def _line(block: str, index: int) -> int:
    return block.rfind("\n", 0, index) + 1


def _next_line(block: str, index: int) -> int:
    """The beginning of the line after the one on which the text before `index` ends."""
    return block.index("\n", len(block[:index].rstrip())) + 1


def _sequence(node: yaml.Node) -> yaml.SequenceNode:
    if isinstance(node, yaml.SequenceNode):
        return node
    raise UserError(f"the {KEY} of the card is no list: mend it, or leave --card out")


def _composed(block: str) -> yaml.MappingNode | None:
    try:
        root = yaml.compose(block, Loader=yaml.SafeLoader)
        yaml.safe_load(block)
    except yaml.YAMLError as error:
        raise UserError(f"the metadata of the card is no valid YAML ({' '.join(str(error).split())}): mend it") from error
    if root is None or isinstance(root, yaml.MappingNode):
        return root
    raise UserError("the metadata of the card are no keys and values: mend them")


def _dumped(content: Any, line_break: str) -> str:
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10**6, line_break=line_break))


def _check(before: str, after: str) -> None:
    """Raise UserError where anything but our results would have changed, as in a file that repeats parts of itself by reference.

    So it does where the metadata are no results as the Hub has them: a metric that is a word, arguments that are a number.
    """
    try:
        same = _others(yaml.safe_load(before)) == _others(yaml.safe_load(after))
    except (yaml.YAMLError, TypeError, AttributeError):
        same = False
    if not same:
        remedy = "write its metadata as plain lines from the first column, without {}, & and *"
        raise UserError(f"the {KEY} of the card cannot be changed in part: {remedy}, and each metric with its type and value")


def _others(data: Any) -> Any:
    """The metadata without our results, and without what is empty then."""
    found = dict(data or {})
    models = [{**model, "results": _without(model.get("results") or [])} for model in found.pop(KEY, None) or []]
    return found, [model for model in models if model["results"]]


def _without(results: Sequence[Any]) -> list[Any]:
    left = []
    for result in results:
        metrics = [one for one in result.get("metrics") or [] if MARK not in (one.get("args") or {})]
        if metrics or not result.get("metrics"):
            left.append({**result, "metrics": metrics})
    return left
