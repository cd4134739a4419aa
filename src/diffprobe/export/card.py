"""A model card: the headline numbers as the Hub's two forms of evaluation results, and a section for readers. Nothing is uploaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from diffprobe.errors import UserError
from diffprobe.export.base import Exported, Target, missing_of, name_of, settings_of
from diffprobe.export.front_matter import MARK, Results, with_results
from diffprobe.export.names import metric_names
from diffprobe.export.section import END, START, section, with_section
from diffprobe.files import explained, whole
from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Card
from diffprobe.report.numbers import finite, plain, shown
from diffprobe.runs.result import Run

_TASKS = {"drift": "image-to-image", "consistency": "text-to-image"}  # what the Hub has no name for is "other"
_FILES = {".txt", ".csv", ".json", ".jsonl"}
_MEASURED = ("images", "groups", "prompts", "sets", "base", "variants", "partitions")  # settings that say what was looked at
_NAMED = 4  # items of a list that are named


class _Headline(NamedTuple):
    name: str  # unlike any other's
    probe: str
    card: Card
    estimate: Estimate
    value: float


def to_card(run: Run, target: Target) -> Exported:
    """Write the results into `target.card`, or into `model-card.md` of the folder, and `.eval_results/diffprobe.yaml` beside it.

    In a card that exists our earlier entries and section are replaced; whatever else is in it stays to the byte. Headline numbers that
    could not be measured are in the section, with the reason, and not among the entries, which have no null. Raises UserError for
    a card that cannot be read, or not be changed in part.
    """
    path = (target.card or target.folder / "model-card.md").resolve()
    text = _read(path) if path.exists() else f"# {name_of(run)}\n\n{START}\n{END}\n"
    mark, body = ("\ufeff", text[1:]) if text.startswith("\ufeff") else ("", text)
    written = mark + with_section(with_results(body, name_of(run), model_index(run)), section(run))
    entries = path.parent / ".eval_results" / "diffprobe.yaml"
    with explained(path):
        with whole(path) as partial:
            partial.write_bytes(written.encode())
            if path.exists():
                shutil.copymode(path, partial)
        files = (path, *_write_entries(run, entries))
    null = sum(card.estimate.value is None for findings in run.findings.values() for card in findings.cards)
    notes = (f"{null} headline numbers are not measured: the section has them with the reason, the entries do not",) if null else ()
    return Exported(str(target.card or path), files, notes)


def model_index(run: Run) -> Results:
    """The headline numbers as `results` of a classic model-index, a group a probe: interval and n in the metric's name and `args`."""
    found: Results = []
    for probe in run.findings:
        entries = [_entry(run, one) for one in _headlines(run) if one.probe == probe]
        found += eval_results_to_model_index(name_of(run), entries)[0]["results"] if entries else []
    return found


def evaluation_results(run: Run) -> list[EvalResultEntry]:
    """The headline numbers in the newer form, a leaderboard's entry each: interval and n in the notes."""
    return [
        EvalResultEntry(
            dataset_id=_slug(measured(settings_of(run)[one.probe])),
            task_id=one.name,
            value=one.value,
            date=str(run.about["created"]).split()[0],
            notes="; ".join([_title(run, one), *_origin(run)]),
        )
        for one in _headlines(run)
    ]


def measured(settings: Mapping[str, Any]) -> str:
    """What a probe with these settings looks at, in words: "images world"; of files and folders only the last part of the path."""
    told = []
    for name in _MEASURED:
        value = settings.get(name)
        items = [_public(name, item) for item in (value if isinstance(value, list) else [value]) if item]
        more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
        told += [f"{name} {', '.join(items[:_NAMED])}{more}"] if items else []
    return "; ".join(told) or "the probe's own settings"


def _entry(run: Run, one: _Headline) -> EvalResult:
    subject, estimate = measured(settings_of(run)[one.probe]), one.estimate
    lo, hi = finite(estimate.lo), finite(estimate.hi)
    return EvalResult(
        task_type=_TASKS.get(one.probe, "other"),
        task_name=f"diffprobe {one.probe}",
        dataset_type=_slug(subject),
        dataset_name=subject,
        metric_type=f"{one.probe}.{estimate.quantity}",
        metric_name=_title(run, one),
        metric_value=one.value,
        metric_args={
            MARK: run.about["versions"]["diffprobe"],
            "lo": lo,
            "hi": hi,
            "level": None if lo is None and hi is None else _level(run, one.probe),
            "n": estimate.n,
            "unit": estimate.unit or None,
            "facets": plain(estimate.facets) or None,
            "incomplete": missing_of(run) or None,
        },
    )


def _write_entries(run: Run, path: Path) -> tuple[Path, ...]:
    found = evaluation_results(run)
    if not found:
        path.unlink(missing_ok=True)
        return ()
    text = yaml.safe_dump(eval_result_entries_to_yaml(found), sort_keys=False, allow_unicode=True, width=10**6)
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return (path,)


def _headlines(run: Run) -> Iterator[_Headline]:
    """Those that have a value."""
    cards = [(probe, card) for probe, findings in run.findings.items() for card in findings.cards]
    names = metric_names([card.estimate for _, card in cards])
    for name, (probe, card) in zip(names, cards, strict=True):
        value = finite(card.estimate.value)
        if value is not None:
            yield _Headline(name, probe, card, card.estimate, value)


def _title(run: Run, one: _Headline) -> str:
    """The headline with its interval and n, where a reader of the Hub's table sees it."""
    interval, level = shown(one.estimate).interval, _level(run, one.probe)
    told = [f"{100 * level:g} % interval {interval}" if level else f"interval {interval}"] if interval else []
    return f"{one.card.title} ({', '.join([*told, f'n = {one.estimate.n}'])})"


def _origin(run: Run) -> list[str]:
    told = [f"diffprobe {run.about['versions']['diffprobe']}"]
    return [*told, f"incomplete: {missing_of(run)}"] if missing_of(run) else told


def _level(run: Run, probe: str) -> float | None:
    level = settings_of(run)[probe].get("level")
    return float(level) if isinstance(level, float) else None


def _public(setting: str, item: Any) -> str:
    if isinstance(item, Mapping):
        return str(item.get("name", "unnamed"))
    text = str(item)
    if setting == "sets" and "=" in text:
        return text.split("=", 1)[0]
    path = PurePath(text)
    return path.name if setting in {"images", "sets"} or path.suffix in _FILES else text


def _slug(text: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())[:96]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a Markdown file ({error}): give an existing README.md") from error
