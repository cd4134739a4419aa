"""The command `diffprobe run`: a study or a budget to measured runs, their reports, and the comparison of several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, cast

import typer
from rich.console import Console
from rich.markup import escape

from diffprobe.errors import UserError

if TYPE_CHECKING:
    from diffprobe.probes.base import Probe
    from diffprobe.runs.study import Study

out = Console(highlight=False, soft_wrap=True, markup=False)

Budget = Literal["quick", "standard", "paper"]
Dtype = Literal["float32", "bfloat16", "float16"]


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
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ..., offload, offload-layers, balanced")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the networks.", show_default="float32 on a CPU, else bfloat16")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a repository on the hub: a branch, a tag or a commit.")] = None,
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as fp16.")] = None,
    extend: Annotated[bool, typer.Option("--extend", help="Let the study in this directory grow or change.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, its memory and its time, and stop.")] = False,
) -> None:
    """Measure a model, write the report, print the main numbers. With no argument: the embedded model, all probes, in two minutes."""
    from diffprobe.adapters.embedded import require

    given = {"probes": probes, "budget": budget, "images": images, "prompts": prompts}
    instruments = None if embedders is None else _listed(embedders)
    changes = {"model": model, "device": device, "embedders": instruments, "torch_dtype": dtype, "revision": revision, "variant": variant}
    chosen = _study(study, changes, given)
    base = out_dir or Path("runs") / (Path(study).stem if study else f"{slug(chosen.model)}-{budget or 'quick'}")
    options = _Options(extend, dry_run, suit=study is None)
    runs = {name: (base / slug(name), spec, wanted) for name, (spec, wanted) in chosen.variants().items()}
    for _, spec, _ in () if dry_run else runs.values():
        require(spec)  # a model that is missing is told before the first is measured
    whole = [_one(chosen.model_copy(update={"model": spec, "probes": wanted}), path, options) for path, spec, wanted in runs.values()]
    if len(runs) > 1 and not dry_run:
        _compare_models(chosen, {name: path for name, (path, _, _) in runs.items()}, base)
    if not all(whole):
        raise typer.Exit(3)


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
        from diffprobe.runs.timing import forecast

        with out.status(f"looking at {escape(study.model)}") if out.is_terminal else quiet():
            foreseen = forecast(study, suit=options.suit)
        terminal.show_plan(out, plan(foreseen.probes), foreseen, study.model, path)
        return True
    with out.status("reading the images and planning") if out.is_terminal else quiet():
        steps = plan(study.probes)
    from diffprobe.adapters.load import load, rig, with_checkpoints
    from diffprobe.runs.result import start, suited
    from diffprobe.runs.sameness import same_scheduler

    with out.status(f"loading {escape(study.model)}") if out.is_terminal else quiet():
        placed = partial(load, device=study.device, torch_dtype=study.torch_dtype)
        under_test = placed(study.model, revision=study.revision, variant=study.variant)
        named = (name for probe in study.probes for name in getattr(probe, "checkpoints", ()))
        under_test = with_checkpoints(under_test, named, study.torch_dtype)
        worker = rig(under_test, study.embedders, study.scorers, batch_size=study.batch_size)
    for other in same_scheduler({"facts": under_test.facts}, study.scheduler).differences:
        out.print(f"note: {other}: save the pipeline with it, or published numbers cannot be set against this run", markup=False)
    probes = suited(study.probes, worker) if options.suit else study.probes
    if probes != study.probes:
        names = ", ".join(probe.name for probe in probes)
        out.print(f"{study.model} cannot be asked all of this budget: it is asked {names}; `diffprobe doctor --model` says why")
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


def compared(
    runs: Mapping[str, Path], folder: Path, across: Sequence[str] = (), level: float = 0.95, choices: Path | None = None, keep: bool = False
) -> None:
    """Compare, write and print; `keep` refuses to replace the comparison of other runs."""
    from diffprobe import terminal
    from diffprobe.runs.compare import compare

    with out.status("comparing") if out.is_terminal else quiet():
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
        compared(runs, folder, tuple(changed))
    except UserError as error:
        out.print(f"no comparison: {error}", markup=False)


def quiet() -> AbstractContextManager[None]:
    return nullcontext()


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def slug(spec: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in spec).strip("-.")
