"""Distances in the drift probe: a trained eye between original and edit, beside the other metrics."""

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from diffprobe.adapters.exact import exact_model
from diffprobe.adapters.load import load_distance
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.images import Rendered
from diffprobe.model import Rig
from diffprobe.probes.drift import Drift
from diffprobe.probes.drift.cells import Originals
from diffprobe.runs.execute import execute, plan
from diffprobe.runs.store import Store
from tests.published import save_lpips
from tests.test_drift import of


class _Counted:
    """Each image's colours, and how many images were ever asked for."""

    fingerprint = "colours"

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return images.mean((2, 3))


@pytest.mark.parametrize("world", ["gaussian", "identity"])
def test_a_distance_is_a_metric_like_the_others(world: str, tmp_path: Path) -> None:
    """LPIPS (random weights) of original and edit, in records, means, laws, charts and gallery; every image is embedded once."""
    name, counted = "lpips:squeeze", _Counted()
    lpips = load_distance(f"{name}:{save_lpips(tmp_path / 'squeeze', 'squeeze')}", LoadOptions(device="cpu"))
    rig = Rig(exact_model(world), {"colours": counted}, batch_size=3, distances={name: lpips})
    probe = Drift(count=4, prompt_sets=("empty",), strengths=(0.2, 0.4, 0.6), measured=24)
    store, steps = Store(tmp_path / "run"), plan([probe])
    with store.writing():
        execute(steps, store, rig, lambda state: None)
    tables = store.records("drift", [step.key for step in steps])
    edits, originals = tables["Edits"].to_pandas(), tables["Originals"].to_pandas()
    assert counted.asked == 2 * len(originals) + len(edits)  # originals, what the codec makes of them, edits
    by_strength = edits.groupby("requested_strength")[name].mean()
    if world == "identity":  # an edit is what the codec makes of the original
        assert edits[name].to_numpy() == pytest.approx(np.tile(originals[name], 3), rel=1e-4, abs=1e-7)
    else:
        assert by_strength.is_monotonic_increasing
    found = probe.summarise(tables)
    (mean,) = of(found, name, strength=0.6)
    assert mean.value == pytest.approx(by_strength[0.6])
    (codec,) = of(found, f"codec_{name}")
    assert codec.value == pytest.approx(originals[name].mean())
    assert {e.facets["law"] for e in of(found, "kernel_k", metric=name)} == {e.facets["law"] for e in of(found, "kernel_k", metric="mse")}
    assert "How different it looks (squeeze)" in [chart.title for chart in found.charts]
    assert all(name in exhibit.numbers or f"distance ({name})" in exhibit.numbers for exhibit in found.gallery)


def test_a_distance_that_cannot_see_so_little_says_so(tmp_path: Path) -> None:
    """The world's eight pixels are too few for any trunk."""
    lpips = load_distance(f"lpips:squeeze:{save_lpips(tmp_path, 'squeeze')}", LoadOptions(device="cpu"))
    originals = Originals((Rendered(0, 0),), None, None, keep=False)
    with pytest.raises(UserError, match="needs images of at least 17 pixels a side, not 8 x 8: compare larger ones"):
        originals.measure(Rig(exact_model("gaussian"), {}, distances={"lpips": lpips}))
