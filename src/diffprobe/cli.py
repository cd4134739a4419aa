"""The command line. Every body imports what it needs, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from diffprobe.cookbook import recipes
from diffprobe.errors import UserError, unknown
from diffprobe.examining import doctor
from diffprobe.exporting import export_run
from diffprobe.morphing import morph
from diffprobe.running import compared, quiet, run, slug

if TYPE_CHECKING:
    from diffprobe.runs.result import Run


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
out = Console(highlight=False, soft_wrap=True, markup=False)

RunPath = Annotated[Path, typer.Argument(help="The directory of a run.", show_default=False)]


app.command()(run)


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
    folder = out_dir or beside / f"comparison-{slug('-'.join(found))[:80]}"
    compared(found, folder, across or (), level, choices, keep=out_dir is None)


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

    with out.status("deciding") if out.is_terminal else quiet():
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
app.command("export")(export_run)
app.command()(recipes)


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


app.command()(doctor)


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


def _open(path: Path) -> Run:
    from diffprobe.runs.result import open_run

    return open_run(path)
