"""The picture of docs/interpolation.md: mixtures of more and more latents, a row a scheme, from a run of the interpolation probe.

    python -m benchmarks.interpolation_pictures runs/interpolation-embedded/noise docs/interpolation.png

Further words are the group and the schemes, in their order.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from diffprobe.runs.result import open_run

SCHEMES = ("none", "fix", "nin", "slerp", "lol", "fix/global", "fix/channel", "nin/channel", "nin/lowpass")
SIDE, GAP, LEFT, TOP = 64, 3, 100, 24
INK, PAPER = "#1c2024", "#ffffff"


def main(arguments: Sequence[str]) -> None:
    """Write the picture; the group is the run's first, the draw 0."""
    if len(arguments) < 2:
        raise SystemExit("python -m benchmarks.interpolation_pictures RUN OUT.png [GROUP [SCHEME ...]]")
    run, out, *rest = arguments
    rows: pd.DataFrame = open_run(Path(run)).records("interpolation")
    rows = rows[(rows["kind"] == "centroid") & (rows["draw"] == 0) & (rows["origin"] == "images") & rows["picture"].notna()]
    group = rest[0] if rest else rows["group"].iloc[0]
    own = rows[rows["group"] == group].set_index(["scheme", "n"])["picture"]
    schemes = rest[1:] or [scheme for scheme in SCHEMES if scheme in own.index.get_level_values("scheme")]
    sizes = sorted(own.index.get_level_values("n").unique())
    picture(own, schemes, sizes, Path(run, "media")).save(out, optimize=True)


def picture(own: pd.Series, schemes: Sequence[str], sizes: Sequence[int], media: Path) -> Image.Image:
    """A row a scheme, a column a size, with their names."""
    sheet = Image.new("RGB", (LEFT + len(sizes) * (SIDE + GAP), TOP + len(schemes) * (SIDE + GAP)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, n in enumerate(sizes):
        draw.text((LEFT + column * (SIDE + GAP) + SIDE / 2, TOP / 2), f"N = {n}", INK, font, anchor="mm")
    for row, scheme in enumerate(schemes):
        draw.text((LEFT - 10, TOP + row * (SIDE + GAP) + SIDE / 2), scheme, INK, font, anchor="rm")
        for column, n in enumerate(sizes):
            shown = Image.open(media / own[scheme, n]).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(shown, (LEFT + column * (SIDE + GAP), TOP + row * (SIDE + GAP)))
    return sheet


if __name__ == "__main__":
    main(sys.argv[1:])
