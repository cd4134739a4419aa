"""The command `diffprobe doctor`: the environment, or a model before it is loaded."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import typer
from rich.console import Console

out = Console(highlight=False, soft_wrap=True, markup=False)


def doctor(  # noqa: PLR0913, PLR0917
    model: Annotated[str | None, typer.Option(help="A model to look at instead of the environment: any that `run --model` takes.")] = None,
    size: Annotated[int | None, typer.Option(help="The side of its images in pixels.", show_default="its native one")] = None,
    batch_size: Annotated[int, typer.Option(help="How many images run at once.")] = 16,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="Of the networks.", show_default="as `run` takes")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Of a repository on the hub: a branch, a tag or a commit.")] = None,
    variant: Annotated[str | None, typer.Option(help="Of the weight files, such as fp16.")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB to plan for.", show_default="what the device has")] = None,
) -> None:
    """The environment and what is known to break it; or what a model is, which probes it can be asked, their memory, what is missing."""
    from diffprobe.doctor import examine, examine_model
    from diffprobe.errors import UserError

    if memory is not None and not (math.isfinite(memory) and memory > 0):
        raise UserError("--memory is a number of GiB above 0; left out, it is what the device has")

    if model is None:
        found = examine()
    else:
        from diffprobe.adapters.weights import LoadOptions

        room = None if memory is None else int(memory * 2**30)
        found = examine_model(model, LoadOptions(device, dtype, revision, variant), size=size, batch_size=batch_size, memory=room)
    sick = 0
    for finding in found:
        sick += not finding.well
        out.print(f"{'ok  ' if finding.well else 'BAD '} {finding.what}: {finding.told}", markup=False)
    if sick:
        raise typer.Exit(4)
