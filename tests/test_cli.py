"""The command line: exit codes, one line for an error, and nothing lost by Ctrl-C or kill -9."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import yaml

from diffprobe import validate
from diffprobe.cli import main
from diffprobe.errors import UserError
from diffprobe.runs.result import open_run, start
from diffprobe.runs.study import load_study
from tests.small import gaussian
from tests.test_store import file_limit

COMMAND = [sys.executable, "-c", "from diffprobe.cli import main; main()"]


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def diffprobe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in this process: its exit code and what it printed."""

    def command(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["diffprobe", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capsys.readouterr()
        return Answer(int(stopped.value.code or 0), told.out, told.err)

    return command


def write_study(path: Path, probe: str = "", **keys: str) -> Path:
    """A drift study of 4 images and 2 strengths; `probe` and `keys` replace or add settings of the probe and of the study."""
    study: dict[str, Any] = {"embedders": [], **({} if "models" in keys else {"model": "exact:gaussian"})}
    settings = {"kind": "drift", "count": 4, "prompt_sets": "empty", "strengths": [0.3, 0.6], **yaml.safe_load(f"{{{probe}}}")}
    study |= {name: yaml.safe_load(value) for name, value in keys.items()}
    path.write_text(yaml.safe_dump({**study, "probes": [settings]}))
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study.yaml")


def refused(answer: Answer, told: str, code: int = 2) -> None:
    """One line on stderr that says it, no traceback, nothing on stdout."""
    assert answer.code == code, answer
    assert answer.err.startswith("diffprobe: ")
    assert answer.err.count("\n") == 1, answer.err
    assert told in answer.err
    assert "Traceback" not in answer.err + answer.out


def alone(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


HEAVY = ("torch", "diffusers", "transformers", "pandas", "pyarrow", "altair", "scipy")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_answers_at_once(arguments: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"""
import sys
from diffprobe.cli import main
sys.argv = ["diffprobe", *{arguments}]
try:
    main()
finally:
    print(sorted(set({HEAVY}) & set(sys.modules)))
"""
    told = alone(code).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Usage: diffprobe" in told
    assert told.splitlines()[-1] == "[]", "imports what it does not need"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_importing_the_package_imports_nothing_heavy() -> None:
    told = alone(f"import sys, diffprobe; dir(diffprobe); print(sorted(set({HEAVY}) & set(sys.modules)), diffprobe.__version__)").stdout
    assert told.startswith("[] 0.")


def test_a_run_from_its_plan_to_its_report(diffprobe: Command, study: Path, tmp_path: Path) -> None:
    """Dry run, run, the same again, status, report, cite."""
    out = tmp_path / "run"
    planned = diffprobe("run", study, "--out", out, "--dry-run")
    assert planned.code == 0
    assert "5 cells in all, 0 of them measured already" in planned.out
    assert "2 cells  drift Edits" in planned.out
    assert not out.exists()

    done = diffprobe("run", study, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert "5 of 5 cells, 0 failed" in done.out
    assert "drift: mean squared change" in done.out
    assert done.out.endswith(f"report: {out / 'report.html'}\n")
    assert (out / "report.html").stat().st_size > 10_000
    assert {path.suffix for path in (out / "figures").iterdir()} == {".svg", ".png"}

    assert "5 cells in all, 5 of them measured already" in diffprobe("run", study, "--out", out, "--dry-run").out
    state = diffprobe("status", out)
    assert (state.code, state.out) == (0, f"{out}: exact:gaussian, 5 of 5 cells measured, 0 failed\n")
    page = diffprobe("report", out, "--out", tmp_path / "page.html", "--no-figures")
    assert (page.code, page.out) == (0, f"report: {tmp_path / 'page.html'}\n")
    cited = diffprobe("cite", out)
    assert cited.code == 0
    assert cited.out.startswith("drift:\n")
    assert "NoOp-Bench" in cited.out


def test_an_unfinished_run_is_told_by_name_and_exit_code(diffprobe: Command, study: Path, tmp_path: Path) -> None:
    run = start(gaussian(), load_study(str(study)).probes, tmp_path / "run")
    lost = sorted((run.path / "cells" / "drift").iterdir())[0]
    lost.unlink()
    answer = diffprobe("status", run.path)
    assert answer.code == 3
    assert "4 of 5 cells measured" in answer.out
    assert "the command that started it resumes it" in answer.out
    assert diffprobe("report", run.path, "--no-figures").code == 0


def test_cells_that_fail_do_not_stop_the_others_or_the_next_model(diffprobe: Command, tmp_path: Path) -> None:
    """These codecs take images of 8 pixels alone: what is asked at 16 fails, the rest is measured, for each model."""
    models = "{one: exact:gaussian, two/b: exact:identity}"
    answer = diffprobe("run", write_study(tmp_path / "study.yaml", "resolution: [0, 16]", models=models), "--out", tmp_path / "runs")
    assert answer.code == 3
    assert answer.out.count("5 of 10 cells failed: see `diffprobe status") == 2
    state = diffprobe("status", tmp_path / "runs" / "two-b")
    assert state.code == 3
    assert "exact:identity, 5 of 10 cells measured, 5 failed" in state.out
    assert "drift Originals" in state.out
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied" in state.out
    assert state.out.count("its input Originals") == 4


def test_another_study_in_the_directory_is_refused_unless_it_may_grow(diffprobe: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(gaussian(), load_study(str(write_study(tmp_path / "a.yaml", "strengths: [0.3]"))).probes, out)
    grown = write_study(tmp_path / "b.yaml")
    refused(diffprobe("run", grown, "--out", out), "drift's strengths is [0.3] there and [0.3, 0.6] here")
    answer = diffprobe("run", grown, "--out", out, "--extend")
    assert answer.code == 0
    assert "2 of 2 cells, 0 failed" in answer.out
    assert open_run(out).done == 5


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (("run", "--model", "exact:gausian"), "unknown exact world 'gausian': did you mean 'gaussian'?", 2),
        (("run", "--model", "nowhere/at/all"), "no model 'nowhere/at/all': give 'embedded'", 2),
        (("run", "--model", "nobody/nothing"), "'nobody/nothing' is neither a folder nor in the cache", 4),
        (("run", "--probes", "drfit"), "unknown probe 'drfit': did you mean 'drift'?", 2),
        (("run", "nope.yaml"), "no study file at 'nope.yaml'", 2),
        (("run", "noop-bench", "--probes", "drift"), "a study has its own probes", 2),
        (("run", "noop-bench", "--images", "x"), "a study has its own images", 2),
        (("run", "noop-bench", "--budget", "quick"), "a study has its own budget", 2),
        (("run", "--images", "nowhere"), "no images at 'nowhere': give a folder, a manifest", 2),
        (("run", "--device", "cuda:9"), "device 'cuda:9' is not available", 4),
        (("status", "nowhere"), "nowhere holds no run", 2),
        (("report", "nowhere"), "nowhere holds no run", 2),
        (("cite", "nowhere"), "nowhere holds no run", 2),
        (("validate", "drfit"), "unknown probe 'drfit': did you mean 'drift'?", 2),
        (("select", "nowhere"), "no images at 'nowhere'", 2),
        (("select", "world"), "rendered scenes need no subset", 2),
    ],
)
def test_bad_input_is_one_line(
    diffprobe: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(diffprobe(*arguments), told, code)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"embedders": "[clup]"}, "unknown embedder 'clup': did you mean 'clip'?"),
        ({"modle": "embedded"}, "unknown key in the study 'modle': did you mean 'model'?"),
        ({"models": "{a: exact:gaussian}"}, "this study has several models: leave --model out"),
    ],
)
def test_a_bad_study_is_one_line(diffprobe: Command, tmp_path: Path, extra: dict[str, str], told: str) -> None:
    path = write_study(tmp_path / "study.yaml", **extra)
    model = ["--model", "exact:gaussian"] if "models" in extra else []
    refused(diffprobe("run", path, "--out", tmp_path / "run", *model), told)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [(), ("rum",), ("run", "--bugdet", "quick"), ("run", "--budget", "huge"), ("status",)])
def test_usage_has_exit_code_2(diffprobe: Command, arguments: tuple[str, ...]) -> None:
    answer = diffprobe(*arguments)
    assert answer.code == 2
    assert "Usage: diffprobe" in answer.out + answer.err


def test_a_limit_of_the_disk_is_one_line_and_exit_code_4_and_the_same_command_goes_on(
    diffprobe: Command, study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with file_limit(2500):  # enough for run.json and plan.json, too little for a record
        refused(diffprobe("run", study, "--out", out), "raise the limit (`ulimit -f`), then run the same command again", 4)
    assert not list(out.rglob("*.partial"))
    assert start(gaussian(), load_study(str(study)).probes, out).done == 5


def test_models_are_listed(diffprobe: Command) -> None:
    answer = diffprobe("models")
    assert answer.code == 0
    assert answer.out.startswith("embedded ")
    assert "exact:gaussian" in answer.out


def test_validation_says_ok_and_a_wrong_answer_fails_it(diffprobe: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = validate.Check("a sum", 2.01, 2.0, 0.01), validate.Check("a product", 7.0, 6.0, 0.01)
    monkeypatch.setitem(validate.VALIDATIONS, "drift", lambda: iter([right]))
    for slow in ("geometry", "speciation"):  # most of a minute, and tests/test_validate.py has them
        monkeypatch.delitem(validate.VALIDATIONS, slow)
    answer = diffprobe("validate")
    assert answer.code == 0
    assert "ok" in answer.out
    monkeypatch.setitem(validate.VALIDATIONS, "drift", lambda: iter([right, wrong]))
    answer = diffprobe("validate", "drift")
    assert answer.code == 1
    assert answer.out.endswith("1 answers are wrong\n")
    assert "WRONG" in answer.out


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A study of 36 cells under way in a process of its own, with some cells measured; and its arguments."""
    study = write_study(tmp_path / "long.yaml", "count: 64, strengths: [0.4, 0.5, 0.7, 0.8], num_inference_steps: 100")
    arguments = ["run", str(study), "--out", str(tmp_path / "run")]
    cells = tmp_path / "run" / "cells" / "drift"
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            patience = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < patience and len(list(cells.glob("*.parquet"))) < 4:
                time.sleep(0.002)
            assert process.poll() is None, "it ended before it could be disturbed"
            yield process, arguments
        finally:
            process.kill()


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_exit_code_3_and_loses_nothing(
    diffprobe: Command, running: tuple[subprocess.Popen[str], list[str]], tmp_path: Path
) -> None:
    process, _ = running
    run = open_run(tmp_path / "run")
    with pytest.raises(UserError, match="another process is running in"), run.store.writing():
        pass
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    answer = Answer(process.returncode, out, err)
    refused(answer, "interrupted; what was measured is kept, and the same command resumes", 3)
    assert 3 < run.done < run.planned
    assert not run.failures
    assert not list(run.path.rglob("*.partial"))
    assert run.store.records("drift", run.plan["drift"])["Originals"].num_rows > 0
    assert diffprobe("status", run.path).code == 3


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_records_of_an_undisturbed_one(
    diffprobe: Command, running: tuple[subprocess.Popen[str], list[str]], tmp_path: Path
) -> None:
    process, arguments = running
    process.kill()
    process.wait(timeout=60)
    killed = open_run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (killed.path / "cells").rglob("*.parquet")}
    assert 3 < killed.done < killed.planned

    answer = diffprobe(*arguments)
    assert answer.code == 0
    left = killed.planned - len(before)
    assert f"{left} of {left} cells, 0 failed" in answer.out
    assert {path: path.stat().st_mtime_ns for path in before} == before, "measured twice"

    whole = start(gaussian(), load_study(arguments[1]).probes, tmp_path / "undisturbed")
    assert json.loads((killed.path / "plan.json").read_text()) == whole.plan
    for key in whole.plan["drift"]:
        pair = [pq.read_table(run.path / "cells" / "drift" / f"{key}.parquet") for run in (killed, whole)]
        assert pair[0].equals(pair[1], check_metadata=True)
    assert (killed.path / "summary.json").read_bytes() == (whole.path / "summary.json").read_bytes()


def test_a_variant_and_a_number_format_are_options_and_keys_of_a_study(
    diffprobe: Command, pipelines: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "variant"
    shutil.copytree(pipelines("sd"), folder)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    asked = ("run", "--model", folder, "--probes", "drift", "--dry-run")
    assert "fp16" in diffprobe(*asked).out, "the dry run says that the variant must be named"
    told = diffprobe(*asked, "--variant", "fp16", "--dtype", "bfloat16")
    assert told.code == 0
    assert "still to do" in told.out
    study = tmp_path / "study.yaml"
    study.write_text(
        f"model: {folder}\nvariant: fp16\ntorch_dtype: bfloat16\nscheduler: EulerDiscreteScheduler\nprobes:\n"
        "  - {kind: drift, count: 1, prompt_sets: empty, strengths: 0.5, num_inference_steps: 4, budget: false}\n"
    )
    done = diffprobe("run", study, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert (
        "note: its pipeline samples with DDIMScheduler, and the study's with EulerDiscreteScheduler: save the pipeline with it" in done.out
    )
    model = json.loads((tmp_path / "run" / "run.json").read_text())["model"]
    assert (model["variant"], model["dtype"]) == ("fp16", "bfloat16")


def test_names_with_brackets_are_shown_as_they_are(diffprobe: Command, tmp_path: Path) -> None:
    """Square brackets are no markup: neither in a path nor in a prompt."""
    planned = diffprobe("run", "--model", "exact:gmm", "--probes", "geometry", "--dry-run", "--out", tmp_path / "v[/a]")
    assert planned.code == 0
    assert "v[/a]" in planned.out
    study = tmp_path / "study.yaml"
    study.write_text(
        "model: exact:gmm\nprobes:\n"
        "  - {kind: consistency, prompts: ['class 0 [sks]', 'class 1'], repetitions: 3, num_inference_steps: 3}\n"
    )
    done = diffprobe("run", study, "--out", tmp_path / "run[x]")
    assert done.code == 0, done.err
    assert "[sks]" in done.out
    assert "run[x]" in done.out
