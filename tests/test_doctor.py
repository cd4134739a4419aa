"""The doctor: what it looks at, and the torchvision that does not match torch."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from diffprobe.doctor import Finding, examine

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
