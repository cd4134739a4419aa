"""The command line. Every body imports what it needs, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

import typer
from rich.console import Console
from typer.core import TyperGroup

from diffprobe.errors import UserError, unknown
from diffprobe.morphing import morph

if TYPE_CHECKING:
    from diffprobe.probes.base import Probe
    from diffprobe.runs.result import Run
    from diffprobe.runs.study import Study


class Commands(TyperGroup):
    """The commands, of which each may be interrupted."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise UserError("interrupted; what was measured is kept, and the same command resumes", exit_code=3) from None


app = typer.Typer(
    cls=Commands,
    name="diffprobe",
    help="How does a diffusion model behave? In numbers with intervals, pictures and one sentence of verdict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, soft_wrap=True)

Budget = Literal["quick", "standard", "paper"]
RunPath = Annotated[Path, typer.Argument(help="The directory of a run.", show_default=False)]


@app.command()
def run(  # noqa: PLR0913, PLR0917
    study: Annotated[str | None, typer.Argument(help="A study file (YAML) or the name of a shipped recipe.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="A name from `diffprobe models`, a folder of a saved pipeline, or a hub id.")] = None,
    probes: Annotated[str | None, typer.Option(help="Which probes, comma-separated; all by default.")] = None,
    budget: Annotated[Budget | None, typer.Option(help="How much to measure.", show_default="quick")] = None,
    images: Annotated[str | None, typer.Option(help="For drift: a folder or a manifest of images instead of rendered scenes.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="For consistency: a file of prompts or a set instead of the embedded scenes'.")
    ] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="The run's directory; the same command resumes it.")] = None,
    embedders: Annotated[str | None, typer.Option(help="Instruments, comma-separated: embedded, clip:<folder or hub id>, ...")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    extend: Annotated[bool, typer.Option("--extend", help="Let the study in this directory grow or change.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Measure a model, write the report, print the main numbers. With no argument: the embedded model, all probes, in two minutes."""
    from diffprobe.adapters.embedded import require

    given = {"probes": probes, "budget": budget, "images": images, "prompts": prompts}
    instruments = None if embedders is None else _listed(embedders)
    chosen = _study(study, {"model": model, "device": device, "embedders": instruments}, given)
    base = out_dir or Path("runs") / (Path(study).stem if study else f"{_slug(chosen.model)}-{budget or 'quick'}")
    options = _Options(extend, dry_run, suit=study is None)
    runs = {name: (base / _slug(name), spec, wanted) for name, (spec, wanted) in chosen.variants().items()}
    for _, spec, _ in () if dry_run else runs.values():
        require(spec)  # a model that is missing is told before the first is measured
    whole = [_one(chosen.model_copy(update={"model": spec, "probes": wanted}), path, options) for path, spec, wanted in runs.values()]
    if len(runs) > 1 and not dry_run:
        _compare_models(chosen, {name: path for name, (path, _, _) in runs.items()}, base)
    if not all(whole):
        raise typer.Exit(3)


@app.command()
def status(run: RunPath) -> None:
    """How far a run is, and what failed."""
    found = _open(run)
    out.print(f"{found.path}: {found.about['model']['name']}, {found.done} of {found.planned} cells measured, {len(found.failures)} failed")
    for key, failure in found.failures.items():
        out.print(f"  {failure['probe']} {failure['class']} {key}: {failure['error'].strip().splitlines()[-1]}")
    if found.done < found.planned:
        out.print("the command that started it resumes it")
        raise typer.Exit(3)


@app.command()
def report(
    run: RunPath,
    out_file: Annotated[Path | None, typer.Option("--out", help="Where to write the page; report.html in the run by default.")] = None,
    figures: Annotated[bool, typer.Option(help="Also write every chart as SVG and PNG to figures/ in the run.")] = True,
) -> None:
    """Write the report of a run, whole or unfinished: one offline HTML file."""
    found = _open(run)
    out.print(f"report: {found.report(out_file)}")
    if figures:
        out.print(f"figures: {len(found.figures())} files in {found.path / 'figures'}")


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Directories of runs, or NAME=RUN; the first is the base.", show_default=False)],
    out_dir: Annotated[Path | None, typer.Option("--out", help="Where to write; beside the first run by default.")] = None,
    across: Annotated[list[str] | None, typer.Option(help="A setting that is meant to differ; may be repeated.")] = None,
    choices: Annotated[Path | None, typer.Option(help="What people chose: a CSV with prompt, choice and perhaps annotator.")] = None,
    level: Annotated[float, typer.Option(help="Of the intervals and the tests.")] = 0.95,
) -> None:
    """Set runs against the first one, paired row by row: verdicts, differences with intervals, and the worst regressions."""
    from diffprobe.runs.comparison.sides import named

    found = named(runs)
    beside = next(iter(found.values())).resolve().parent
    folder = out_dir or beside / f"comparison-{_slug('-'.join(found))[:80]}"
    _compared(found, folder, across or (), level, choices, keep=out_dir is None)


@app.command()
def gate(  # noqa: PLR0913, PLR0917
    run: RunPath,
    baseline: Annotated[Path | None, typer.Option(help="The run that rules with `baseline` compare with.")] = None,
    rule: Annotated[list[str] | None, typer.Option(help="Such as 'drift.k <= 1.05*baseline'; may be repeated.")] = None,
    rules: Annotated[Path | None, typer.Option(help="A text file of rules, one a line; # begins a comment.")] = None,
    across: Annotated[list[str] | None, typer.Option(help="A setting that is meant to differ; may be repeated.")] = None,
    level: Annotated[float, typer.Option(help="Of the two-sided intervals that decide.")] = 0.95,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a summary for a pull request here.")] = None,
) -> None:
    """Whether a run keeps rules: pass (exit code 0), fail (1), or inconclusive (3), with the n that would decide."""
    from diffprobe import terminal
    from diffprobe.runs.gate import gate
    from diffprobe.runs.rules import read_rules

    with out.status("deciding") if out.is_terminal else _quiet():
        found = gate(run, baseline, [*(rule or ()), *(read_rules(rules) if rules else ())], across=across or (), level=level)
    terminal.show_gate(out, found)
    for path in found.write(junit, markdown):
        out.print(f"written: {path}", markup=False)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


@app.command()
def select(
    images: Annotated[str, typer.Argument(help="A folder or a manifest of images.")],
    per_domain: Annotated[int, typer.Option(help="How many images of each domain.")] = 25,
    embedder: Annotated[str, typer.Option(help="Whose features spread them out: embedded, clip:<folder or hub id>, ...")] = "embedded",
    seed: Annotated[int, typer.Option(help="Of the first choice in each domain.")] = 0,
    out_file: Annotated[Path, typer.Option("--out", help="The manifest to write.")] = Path("subset.json"),
) -> None:
    """Choose a small, stratified, diverse subset of many images, as a manifest for drift studies."""
    from diffprobe.subset import write_subset

    out.print(f"{write_subset(images, per_domain, embedder, seed, out_file)} images in {out_file}")


app.command()(morph)


@app.command()
def validate(
    probes: Annotated[list[str] | None, typer.Argument(help="Which probes; all by default.", show_default=False)] = None,
) -> None:
    """Known answers: each probe's mathematics against worlds whose truth is exact."""
    from rich.table import Table

    from diffprobe.validate import VALIDATIONS

    names = probes or list(VALIDATIONS)
    wrong = 0
    for name in names:
        if name not in VALIDATIONS:
            raise unknown("probe", name, VALIDATIONS)
        table = Table("what", "measured", "truth", "allowed", "", title=f"validate {name}", title_justify="left")
        for check in VALIDATIONS[name]():
            wrong += not check.holds
            table.add_row(check.what, f"{check.measured:.5g}", f"{check.truth:.5g}", check.allowed, "ok" if check.holds else "WRONG")
        out.print(table)
    if wrong:
        out.print(f"{wrong} answers are wrong")
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """The environment: versions, device, caches, and the torchvision trap."""
    from diffprobe.doctor import examine

    sick = 0
    for finding in examine():
        sick += not finding.well
        out.print(f"{'ok  ' if finding.well else 'BAD '} {finding.what}: {finding.told}")
    if sick:
        raise typer.Exit(4)


@app.command()
def models() -> None:
    """The models that need no download, and how to name others."""
    from diffprobe import terminal
    from diffprobe.adapters.catalogue import catalogue

    terminal.show_models(out, catalogue())


@app.command()
def cite(run: RunPath) -> None:
    """What to cite for the numbers of a run."""
    for probe in _open(run).probes:
        out.print(f"{probe.name}:")
        for line in probe.cites:
            out.print(f"  {line}")


def main() -> None:
    """The entry point: a user's error is one line on stderr and an exit code, never a traceback."""
    # Idle threads sleep instead of spinning: where two share a core, spinning made small networks ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(prog_name="diffprobe")
    except UserError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"diffprobe: {error}", markup=False)
        sys.exit(error.exit_code)


def _study(study: str | None, changes: Mapping[str, str | tuple[str, ...] | None], given: Mapping[str, str | None]) -> Study:
    """The study that the arguments mean: a file with `changes`, or a budget's; raises UserError for those that contradict each other."""
    from diffprobe.runs.study import Study, load_study

    if study is not None:
        found = load_study(study)
        for name, value in given.items():
            if value:
                raise UserError(f"a study has its own {name}: leave --{name} out, or edit the file")
    else:
        found = Study(probes=_preset(given))
    if changes["model"] and found.models:
        raise UserError("this study has several models: leave --model out, or edit the file")
    return found.model_copy(update={name: value for name, value in changes.items() if value is not None})


def _preset(given: Mapping[str, str | None]) -> tuple[Probe, ...]:
    """The probes of a budget, with the images and prompts that were given."""
    from dataclasses import replace

    from diffprobe.probes.consistency import Consistency
    from diffprobe.probes.drift import Drift
    from diffprobe.runs.study import preset

    probes: tuple[Probe, ...] = preset(_listed(given["probes"] or ""), cast(Budget, given["budget"] or "quick"))
    for option, kind in (("images", Drift), ("prompts", Consistency)):
        if given[option] and not any(isinstance(probe, kind) for probe in probes):
            raise UserError(f"--{option} is for the {kind.name} probe, which --probes leaves out: name it, or leave --{option} out")
    if images := given["images"]:
        probes = tuple(replace(probe, images=images, count=None) if isinstance(probe, Drift) else probe for probe in probes)
    if prompts := given["prompts"]:
        probes = tuple(replace(probe, prompts=(prompts,), count=None) if isinstance(probe, Consistency) else probe for probe in probes)
    return probes


class _Options(NamedTuple):
    extend: bool
    dry_run: bool
    suit: bool  # a budget's probes may be changed to what the model can be asked; a study's may not


def _one(study: Study, path: Path, options: _Options) -> bool:
    """The study's one model: load, measure, report. Returns whether all of it is measured."""
    from diffprobe import terminal
    from diffprobe.runs.execute import plan

    if options.dry_run:
        terminal.show_plan(out, plan(study.probes), study.model, path)
        return True
    with out.status("reading the images and planning") if out.is_terminal else _quiet():
        steps = plan(study.probes)
    from diffprobe.adapters.load import load, rig, with_checkpoints
    from diffprobe.runs.result import start, suited

    with out.status(f"loading {study.model}") if out.is_terminal else _quiet():
        under_test = load(study.model, device=study.device, torch_dtype=study.torch_dtype)
        named = (name for probe in study.probes for name in getattr(probe, "checkpoints", ()))
        under_test = with_checkpoints(under_test, named, study.torch_dtype)
        worker = rig(under_test, study.embedders, study.scorers, batch_size=study.batch_size)
    probes = suited(study.probes, worker) if options.suit else study.probes
    if probes != study.probes:
        out.print(f"{study.model} cannot be asked all of this budget: it is asked what it can be")
        steps = plan(probes)
    with terminal.progress(out, len(steps)) as told:
        done = start(worker, probes, path, extend=options.extend, report=told)
    done.figures()
    terminal.show_numbers(out, done)
    out.print(f"report: {done.report()}")
    missing = done.planned - done.done
    if missing:
        out.print(f"{missing} of {done.planned} cells failed: see `diffprobe status {path}`; the same command tries them again")
    return not missing


def _compared(
    runs: Mapping[str, Path], folder: Path, across: Sequence[str] = (), level: float = 0.95, choices: Path | None = None, keep: bool = False
) -> None:
    """Compare, write and print; `keep` refuses to replace the comparison of other runs."""
    from diffprobe import terminal
    from diffprobe.runs.compare import compare

    with out.status("comparing") if out.is_terminal else _quiet():
        found = compare(runs, across=across, level=level, choices=choices)
        if keep and found.displaces(folder):
            raise UserError(f"{folder} holds a comparison of other runs: choose another --out, or other names (NAME=RUN)")
        written = found.write(folder)
    terminal.show_comparison(out, found)
    out.print(f"comparison: {', '.join(map(str, written))}", markup=False)


def _compare_models(study: Study, runs: Mapping[str, Path], base: Path) -> None:
    """The models of a study against the first, across what it changes for them; where that cannot be, it is said and loses nothing."""
    folder = base / ("comparison" if base / "comparison" not in runs.values() else "comparison-of-models")
    changed = dict.fromkeys(name for variant in study.models.values() for settings in variant.changes.values() for name in settings)
    try:
        _compared(runs, folder, tuple(changed))
    except UserError as error:
        out.print(f"no comparison: {error}", markup=False)


def _open(path: Path) -> Run:
    from diffprobe.runs.result import open_run

    return open_run(path)


def _quiet() -> AbstractContextManager[None]:
    return nullcontext()


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _slug(spec: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in spec).strip("-.")
