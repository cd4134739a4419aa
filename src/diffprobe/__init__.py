"""diffprobe: how does a diffusion model behave? Five questions, one tool, intervals on every number.

Importing the package imports no heavy library; each name loads what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffprobe import controls as controls
    from diffprobe import worlds as worlds
    from diffprobe.adapters.load import load as load
    from diffprobe.adapters.load import rig as rig
    from diffprobe.adapters.load import with_checkpoints as with_checkpoints
    from diffprobe.adapters.wrapping import wrap as wrap
    from diffprobe.errors import UserError as UserError
    from diffprobe.measures.stats import Estimate as Estimate
    from diffprobe.model import Model as Model
    from diffprobe.model import Rig as Rig
    from diffprobe.paths import RectifiedFlow as RectifiedFlow
    from diffprobe.paths import VarianceExploding as VarianceExploding
    from diffprobe.paths import VariancePreserving as VariancePreserving
    from diffprobe.probes.consistency import Consistency as Consistency
    from diffprobe.probes.drift import Drift as Drift
    from diffprobe.probes.geometry import Field as Field
    from diffprobe.probes.geometry import Generated as Generated
    from diffprobe.probes.geometry import Geometry as Geometry
    from diffprobe.probes.geometry import Slice as Slice
    from diffprobe.probes.interpolation import Interpolation as Interpolation
    from diffprobe.probes.speciation import Partition as Partition
    from diffprobe.probes.speciation import Push as Push
    from diffprobe.probes.speciation import Speciation as Speciation
    from diffprobe.probes.speciation import Sweep as Sweep
    from diffprobe.runs.asked import asked as asked
    from diffprobe.runs.compare import Comparison as Comparison
    from diffprobe.runs.compare import compare as compare
    from diffprobe.runs.gate import GateResult as GateResult
    from diffprobe.runs.gate import gate as gate
    from diffprobe.runs.result import Run as Run
    from diffprobe.runs.result import open_run as open
    from diffprobe.runs.result import start as run

__version__ = "0.1.0"

_NAMES = {
    "Comparison": "diffprobe.runs.compare:Comparison",
    "Consistency": "diffprobe.probes.consistency:Consistency",
    "Drift": "diffprobe.probes.drift:Drift",
    "Estimate": "diffprobe.measures.stats:Estimate",
    "Field": "diffprobe.probes.geometry:Field",
    "GateResult": "diffprobe.runs.gate:GateResult",
    "Generated": "diffprobe.probes.geometry:Generated",
    "Geometry": "diffprobe.probes.geometry:Geometry",
    "Interpolation": "diffprobe.probes.interpolation:Interpolation",
    "Model": "diffprobe.model:Model",
    "Partition": "diffprobe.probes.speciation:Partition",
    "Push": "diffprobe.probes.speciation:Push",
    "RectifiedFlow": "diffprobe.paths:RectifiedFlow",
    "Rig": "diffprobe.model:Rig",
    "Run": "diffprobe.runs.result:Run",
    "Slice": "diffprobe.probes.geometry:Slice",
    "Speciation": "diffprobe.probes.speciation:Speciation",
    "Sweep": "diffprobe.probes.speciation:Sweep",
    "UserError": "diffprobe.errors:UserError",
    "VarianceExploding": "diffprobe.paths:VarianceExploding",
    "VariancePreserving": "diffprobe.paths:VariancePreserving",
    "asked": "diffprobe.runs.asked:asked",
    "compare": "diffprobe.runs.compare:compare",
    "controls": "diffprobe.controls:",
    "gate": "diffprobe.runs.gate:gate",
    "load": "diffprobe.adapters.load:load",
    "open": "diffprobe.runs.result:open_run",
    "rig": "diffprobe.adapters.load:rig",
    "run": "diffprobe.runs.result:start",
    "with_checkpoints": "diffprobe.adapters.load:with_checkpoints",
    "worlds": "diffprobe.worlds:",
    "wrap": "diffprobe.adapters.wrapping:wrap",
}
__all__ = [
    "Comparison",
    "Consistency",
    "Drift",
    "Estimate",
    "Field",
    "GateResult",
    "Generated",
    "Geometry",
    "Interpolation",
    "Model",
    "Partition",
    "Push",
    "RectifiedFlow",
    "Rig",
    "Run",
    "Slice",
    "Speciation",
    "Sweep",
    "UserError",
    "VarianceExploding",
    "VariancePreserving",
    "asked",
    "compare",
    "controls",
    "gate",
    "load",
    "open",
    "rig",
    "run",
    "with_checkpoints",
    "worlds",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'diffprobe' has no attribute '{name}'")
    module, _, attribute = _NAMES[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
