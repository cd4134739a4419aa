"""The command `diffprobe recipes`: the shipped studies, what each would cost, and how a finished run compares with what was published."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from diffprobe.errors import UserError

if TYPE_CHECKING:
    from diffprobe.runs.published import Verdict
    from diffprobe.runs.recipes import Recipe
    from diffprobe.runs.result import Run
    from diffprobe.runs.study import Report

out = Console(highlight=False, soft_wrap=True, markup=False)

_KINDS = (".md", ".json")


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, or a study file; all are listed by default.", show_default=False)] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="A finished run of it, or the folder with a run of each of its models.")
    ] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the check here, as .md or .json.")] = None,
) -> None:
    """The shipped studies: what each is, costs and stands for; with --check, whether a run agrees with the published numbers."""
    if name is None and check is not None:
        raise UserError("--check compares a run with one recipe: name it, as in `diffprobe recipes noop-ablation --check RUN`")
    if out_file is not None and (check is None or out_file.suffix not in _KINDS):
        raise UserError(f"--out writes a check: give --check, and a file that ends in {' or '.join(_KINDS)}")
    from diffprobe.runs.recipes import cookbook, recipe

    if name is None:
        _show_all(cookbook())
    elif check is None:
        _show(recipe(name))
    else:
        _check(recipe(name), check, out_file)


def _show_all(found: Sequence[Recipe]) -> None:
    for one in found:
        out.print(f"{one.name}: {one.headline}", markup=False)
        out.print(f"  {', '.join(dict.fromkeys(one.models.values()))}; {one.study.source}", markup=False)
    out.print("`diffprobe recipes NAME` shows one; `diffprobe run NAME` runs it")


def _show(one: Recipe) -> None:
    """What a recipe is, what it costs, what stands in for data that are not there, and what was published."""
    from diffprobe.runs.recipes import planned

    lines = [f"{one.name} ({one.path})", one.about, f"source: {one.study.source or 'none is named'}"]
    for plan in planned(one.study):
        cost = plan.cost
        told = f"{plan.cells:,} cells, {cost.evaluations:,} network evaluations, {cost.decodings:,} decodings, {cost.bytes / 1e6:,.0f} MB"
        lines.append(f"model {_of(plan.model)}{plan.spec}: {f'no plan: {plan.reason}' if plan.reason else told}")
    if one.study.scheduler:
        lines.append(f"sampler of the study: {one.study.scheduler}; save the pipeline with it, where it has another")
    lines += [f"stand-in: {place}, where the study has {what}" for place, what in one.study.stand_ins.items()]
    lines += ["with the study's data in a copy of the file: delete their lines under 'stand_ins'"] if one.study.stand_ins else []
    for report in one.study.reports:
        here = f"{reported(report)}; here {report.quantity}" if report.quantity else f"not comparable: {report.note}"
        lines.append(f"reported: {_of(report.model)}{report.what}: {here}")
    for line in lines:
        out.print(line, markup=False)


def _of(model: str | None) -> str:
    return f"{model}: " if model else ""


def _check(one: Recipe, where: Path, out_file: Path | None) -> None:
    from diffprobe.files import explained, whole
    from diffprobe.runs.published import check, flat

    if not one.study.reports:
        raise UserError(f"'{one.name}' has no 'reports': nothing that was published is set against a run of it")
    verdicts = check(runs_of(one, where), one.study)
    for verdict in verdicts:
        out.print(f"{verdict.outcome}: {_of(verdict.report.model)}{verdict.report.what}: {_why(verdict)}", markup=False)
    out.print(counted(verdicts))
    if out_file is not None:
        content = {"recipe": one.name, "source": one.study.source, "run": str(where), "verdicts": [flat(verdict) for verdict in verdicts]}
        with explained(out_file), whole(out_file) as partial:
            text = json.dumps(content, indent=1, allow_nan=False) if out_file.suffix == ".json" else markdown(one, verdicts)
            partial.write_text(text + "\n")
        out.print(f"written: {out_file}", markup=False)


def runs_of(one: Recipe, where: Path) -> Run | dict[str, Run]:
    """The run in a directory, or those of the study's models in a folder that `diffprobe run` wrote; UserError where there is none."""
    from diffprobe.runs.study import slug

    if (where / "run.json").is_file() or not one.study.models:
        return _opened(where)
    found = {name: _opened(where / slug(name)) for name in one.study.models if (where / slug(name) / "run.json").is_file()}
    if not found:
        raise UserError(f"{where} holds no run of {', '.join(one.study.models)}: give a run's directory, or the folder that holds them")
    return found


def _opened(path: Path) -> Run:
    from diffprobe.runs.result import open_run
    from diffprobe.runs.sameness import require_sound
    from diffprobe.runs.store import Store

    require_sound(path, Store(path).identity())  # before its probes are read
    return open_run(path)


def counted(verdicts: Sequence[Verdict]) -> str:
    """How many of each outcome there are, in a sentence."""
    number = Counter(verdict.outcome for verdict in verdicts)
    return f"{number['agree']} agree, {number['differ']} differ, {number['not comparable']} not comparable"


def markdown(one: Recipe, verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a page of Markdown."""
    lines = [f"# {one.name} against what was published", "", one.study.source, "", f"{counted(verdicts)}.", ""]
    lines += ["| verdict | the study reports | model | published | why |", "|---|---|---|---|---|"]
    for verdict in verdicts:
        cells = (verdict.outcome, verdict.report.what, verdict.report.model or "", reported(verdict.report), _why(verdict))
        lines.append(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |")
    return "\n".join(lines)


def _why(verdict: Verdict) -> str:
    return "; ".join((verdict.why, *verdict.caveats))


def reported(report: Report) -> str:
    """What was published, as it was: a value with its spread, or a range."""
    if report.value is not None:
        spread = f" ± {report.plus_minus:g} ({report.spread})" if report.plus_minus is not None else ""
        return f"{report.value}{spread}" + (f", n {report.n:,}" if report.n else "")
    ends = [f"{word} {end:g}" for word, end in (("at least", report.lo), ("at most", report.hi)) if end is not None]
    return ", ".join(ends)
