"""Floor 3: one question each. A probe plans cells, the cells measure themselves, and the probe sums their records up."""

from diffprobe.probes.consistency import Consistency
from diffprobe.probes.drift import Drift
from diffprobe.probes.geometry import Geometry
from diffprobe.probes.interpolation import Interpolation
from diffprobe.probes.speciation import Speciation

#: Every probe by its name.
PROBES: dict[str, type[Drift] | type[Consistency] | type[Geometry] | type[Interpolation] | type[Speciation]] = {
    "drift": Drift,
    "consistency": Consistency,
    "geometry": Geometry,
    "interpolation": Interpolation,
    "speciation": Speciation,
}
