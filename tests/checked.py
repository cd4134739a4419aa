"""Small studies with reports, and a finished run to set against them."""

from typing import Any

from diffprobe.runs.published import Verdict, check
from diffprobe.runs.result import Run
from diffprobe.runs.study import Study, parse_study

PROBE = {"kind": "drift", "count": 4, "prompt_sets": ["empty"], "strengths": [0.3, 0.6]}


def study(*reports: dict[str, Any], **more: Any) -> Study:
    """A study of a Gaussian world, which `small_drift` answers."""
    return parse_study({"model": "exact:gaussian", "embedders": [], "probes": [PROBE], "reports": list(reports), **more})


def about(what: str = "error", **more: Any) -> dict[str, Any]:
    """A report of the mean squared error at strength 0.6."""
    return {"what": what, "quantity": "drift.mse", "facets": {"prompt_set": "empty", "strength": 0.6}, **more}


def only(run: Run, asked: Study) -> Verdict:
    """The verdict of a study with one report."""
    (found,) = check(run, asked)
    return found
