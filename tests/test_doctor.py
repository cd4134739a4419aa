"""The doctor: what it looks at, and the torchvision that does not match torch."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from diffprobe.adapters.weights import LoadOptions
from diffprobe.doctor import Finding, examine, examine_model
from diffprobe.errors import UserError
from diffprobe.runs.memory import gibibytes, memory_of

COMMAND = [sys.executable, "-c", "from diffprobe.cli import main; main()", "doctor"]
LOOKED_AT = ("python", "diffprobe", "torch", "diffusers", "transformers", "torchvision", "device", "hub cache", "disk", "embedded models")


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.what: finding for finding in examine()}


def test_it_looks_at_what_a_run_needs(findings: dict[str, Finding]) -> None:
    assert set(LOOKED_AT) <= findings.keys()
    assert findings["python"].told == sys.version.split()[0]
    assert findings["embedded models"].told.startswith("6 of 6 here")
    assert "offline (HF_HUB_OFFLINE)" in findings["hub cache"].told
    assert all(finding.well for name, finding in findings.items() if name not in ("disk", "torchvision"))


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_no_torchvision_is_fine(findings: dict[str, Finding]) -> None:
    assert findings["torchvision"] == Finding("torchvision", "absent, which is fine: nothing here needs it")


def test_a_package_that_is_missing_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffprobe import doctor

    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    found = {finding.what: finding for finding in examine()}
    assert found["numpy"].well
    assert found["no-such-package"] == Finding("no-such-package", "missing: pip install no-such-package", well=False)


@pytest.mark.slow
def test_a_torchvision_that_does_not_match_is_told_by_name_with_its_remedy(tmp_path: Path) -> None:
    """What a mismatched build does on import; diffusers and transformers break with it, the doctor must not."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")\n')
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    told = subprocess.run(COMMAND, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert told.returncode == 4, told.stderr
    assert told.stderr == ""
    lines = told.stdout.splitlines()
    (bad,) = [line for line in lines if line.startswith("BAD  torchvision")]
    assert "does not match torch" in bad
    assert "pip uninstall torchvision" in bad
    assert bad.endswith("(RuntimeError: operator torchvision::nms does not exist)")
    assert [line[5:].partition(":")[0] for line in lines][-1] == "embedded models", "it goes on to the end"


def looked_at(spec: object, **settings: int) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine_model(str(spec), LoadOptions("cpu"), **settings)}


PROBES = ("drift", "consistency", "geometry", "interpolation", "speciation")


def test_a_model_is_told_with_what_it_can_be_asked_and_what_that_takes() -> None:
    found = looked_at("embedded")
    assert found["model"].told == "Stable Diffusion 1 and 2 (StableDiffusionPipeline), native at 64 pixels"
    assert found["unet"].told == "UNet2DConditionModel, 3.4 million parameters, 6.8 MB on disk in float16"
    assert found["scheduler"].told.startswith("DDIMScheduler, leading")
    assert found["weights"].told == "network 13 MiB, codec 3 MiB, text encoders 2 MiB in float32"
    has = gibibytes(memory_of(torch.device("cpu")) or 0)
    assert found["consistency"].told == f"yes: at 64 pixels 63 MiB of {has} in batches of 16"
    assert all(finding.well for finding in found.values())
    assert set(PROBES) <= found.keys()


def test_more_images_and_larger_ones_take_more() -> None:
    def size(**settings: int) -> float:
        found = re.search(r"pixels ([\d.]+) (MiB|GiB)", looked_at("embedded", **settings)["consistency"].told)
        assert found is not None
        return float(found[1]) * (1024 if found[2] == "GiB" else 1)

    assert size(batch_size=1) < size() < size(size=128) < size(size=256) < size(size=256, batch_size=32)


def test_what_does_not_fit_is_told_with_what_does() -> None:
    """At 256 pixels each image takes 44 MiB to decode. Geometry decodes eight at once whatever the batch, for neighbourhoods."""
    found = looked_at("embedded", size=256, memory=256 << 20)
    assert found["interpolation"].told == "yes: at 256 pixels 726 MiB of 256 MiB in batches of 16, which do not fit: a batch_size of 5 does"
    assert found["geometry"].told.endswith("no batch fits, so take a smaller size, half precision or a larger device")
    assert not found["interpolation"].well
    assert looked_at("embedded", size=256, batch_size=5, memory=256 << 20)["interpolation"].well
    assert not looked_at("embedded", size=256, batch_size=6, memory=256 << 20)["interpolation"].well


def test_what_a_model_lacks_is_told_and_is_no_fault(pipelines: Callable[[str], Path]) -> None:
    alone = looked_at(pipelines("sd") / "vae")
    assert alone["geometry"].told.startswith("yes: at 32 pixels")
    assert alone["speciation"].told.startswith("no: it has no condition and no denoiser and no path")
    assert all(finding.well for finding in alone.values())
    edit = looked_at(pipelines("edit"))
    assert "strengths=[1.0]" in edit["drift"].told
    assert edit["consistency"].told.startswith("no: it has no generator")


def test_what_is_missing_is_bad(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipelines("sd"), tmp_path / "sd"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    found = looked_at(folder)
    assert found["unet"].told.endswith("its weights are missing: fetch them")
    assert [name for name, finding in found.items() if not finding.well] == ["unet"]
    assert found["drift"].told.startswith("yes: at 32 pixels")


@pytest.mark.parametrize(
    ("spec", "settings", "told"),
    [
        ("embedded", {"size": 12}, "--size a multiple of 8 pixels"),
        ("embedded", {"batch_size": 0}, "--batch-size is at least 1"),
        ("exact:gmm", {"size": 64}, "does not run at 64 pixels"),
        ("owner/name", {}, "hf download owner/name"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(spec: str, settings: dict[str, int], told: str) -> None:
    with pytest.raises(UserError, match=told):
        looked_at(spec, **settings)


def test_the_command_ends_with_4_where_a_model_is_not_whole(
    pipelines: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffprobe.cli import main

    def command(*arguments: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["diffprobe", "doctor", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().out.splitlines()

    code, lines = command("--model", pipelines("sd"), "--batch-size", 2, "--dtype", "bfloat16", "--device", "cpu")
    assert code == 0
    assert all(line.startswith("ok   ") for line in lines)
    assert lines[0] == "ok   model: Stable Diffusion 1 and 2 (StableDiffusionPipeline), native at 32 pixels"
    folder = Path(shutil.copytree(pipelines("sd"), tmp_path / "sd"))
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    code, lines = command("--model", folder, "--memory", 0.001)
    assert code == 4
    assert sum(line.startswith("BAD  ") for line in lines) == 6, "the autoencoder, and no probe fits into a MiB"


@pytest.mark.parametrize("memory", ["nan", "inf", "0", "-3"])
def test_a_memory_that_is_none_is_refused(memory: str) -> None:
    told = subprocess.run([*COMMAND, "--model", "exact:gmm", "--memory", memory], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert told.stderr == "diffprobe: --memory is a number of GiB above 0; left out, it is what the device has\n"
