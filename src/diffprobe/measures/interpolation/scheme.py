"""How latents are mixed, by name: what is done to the length of their noise, and which part of them is left out of that."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

NORMS = ("none", "fix", "nin", "slerp", "lol", "blend")
MEANS = ("none", "global", "channel", "lowpass")


@dataclass(frozen=True)
class Scheme:
    """One of `NORMS` for the noise and one of `MEANS` for the part that is mixed plainly. Raises ValueError for other names.

    With d + e the latents, m = sum w e and L the number of their entries, the noise of a mixture is

    ======= ====================================================== ================ ==========================
    norm    noise of the mixture                                   one input alone  far from the inputs
    ======= ====================================================== ================ ==========================
    none    m                                                      stays            shrinks by ||w||
    fix     m at the length sqrt(L)                                is rescaled      of nominal length
    nin     m at the mean length of the inputs, sum w ||e||        stays            as long as the inputs
    slerp   the inputs' mean on the sphere, at the length of nin   stays            as long as the inputs
    lol     m / ||w||                                              stays            of the inputs' variance
    blend   m at a length between those of nin and of pure noise   stays            of nominal length
    ======= ====================================================== ================ ==========================
    """

    norm: str = "nin"
    mean: str = "channel"

    def __post_init__(self) -> None:
        for kind, name, names in (("norm", self.norm, NORMS), ("mean", self.mean, MEANS)):
            if name not in names:
                near = get_close_matches(str(name), names, n=1, cutoff=0.5)
                hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(names)}"
                raise ValueError(f"unknown {kind} '{name}' of a scheme: {hint}")

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Of "nin/channel" or, with no mean, "nin"; `str` gives the same text. Raises ValueError for other names."""
        norm, slash, mean = text.partition("/")
        return cls(norm, mean if slash else "none")

    def __str__(self) -> str:
        return self.norm if self.mean == "none" else f"{self.norm}/{self.mean}"

    @property
    def reproduces(self) -> bool:
        """Whether all the weight on one latent gives that latent, bit for bit: all but "fix", which gives its noise another length."""
        return self.norm != "fix"
