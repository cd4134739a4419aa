"""The interpolation probe: its plan, and its cells against worlds and codecs whose answers are known."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffprobe import rng, worlds
from diffprobe.adapters.exact import exact_model
from diffprobe.adapters.load import load
from diffprobe.errors import UserError
from diffprobe.images import Rendered, scene
from diffprobe.inversion import Inversion
from diffprobe.model import Model, Rig
from diffprobe.paths import VariancePreserving, like
from diffprobe.probes.base import key
from diffprobe.probes.interpolation import Interpolation
from diffprobe.probes.interpolation.groups import caption_of, groups
from diffprobe.probes.interpolation.inversions import Alignments, Inversions
from diffprobe.probes.interpolation.latents import kept_states, mixed_states
from diffprobe.probes.interpolation.mixtures import Mixtures
from diffprobe.runs.execute import plan
from diffprobe.runs.pairing import paired
from diffprobe.runs.result import start
from tests.small import Pixels

SMALL = Interpolation(
    groups=("snow",),
    count=6,
    num_inference_steps=5,
    schemes=("none", "nin/channel"),
    sizes=(1, 2),
    draws=3,
    offsets=(0.5,),
    offset_samples=2,
    replayed=6,
    keep_images=1,
)


def measured(model: Model, probe: Interpolation, batch_size: int = 16) -> dict[str, pd.DataFrame]:
    """The rows of a study by the class of their cells, without a run around it."""
    rig = Rig(model, {"pixels": Pixels()}, batch_size)
    records: dict[str, pa.Table] = {}
    tables: dict[str, list[pa.Table]] = {}
    for step in plan([probe]):
        records[step.key] = step.cell.measure(rig, *(records[key(cell)] for cell in step.cell.inputs()))
        tables.setdefault(type(step.cell).__name__, []).append(records[step.key])
    return {name: pa.concat_tables(some, promote_options="default").to_pandas() for name, some in tables.items()}


class Halved:
    """A codec whose latents are the pixels themselves, in [-1, 1]."""

    def encode(self, images: Tensor) -> Tensor:
        return 2 * images - 1

    def decode(self, latents: Tensor) -> Tensor:
        return latents / 2 + 0.5


def plain() -> Model:
    """Pixels of independent normal values, with the exact denoiser of them."""
    path = VariancePreserving.scaled_linear()
    exact = partial(_gaussian, path)
    return Model("plain", path, exact, Halved(), condition=lambda prompts: torch.zeros(len(prompts)), shape=(3, 8, 8))


def _gaussian(path: VariancePreserving, x: Tensor, t: Tensor | float, cond: object = None) -> Tensor:
    """E[x_0 | x_t] of data of variance 0.01."""
    a, s = like(path.alpha(t), x), like(path.sigma(t), x)
    return 0.01 * a * x / (0.01 * a.square() + s.square())


@pytest.fixture(scope="module")
def found() -> dict[str, pd.DataFrame]:
    return measured(exact_model("gmm"), SMALL)


def test_a_draw_mixes_the_same_images_in_every_scheme(found: dict[str, pd.DataFrame]) -> None:
    rows = found["Mixtures"].assign(members=found["Mixtures"]["members"].map(tuple))
    once = rows.groupby(["origin", "kind", "n", "draw"])["members"].nunique()
    assert (once == 1).all()
    assert (rows.groupby(["origin", "kind", "n", "draw"]).size() == len(SMALL.schemes)).all()
    assert all(len(set(members)) == n for members, n in zip(rows["members"], rows["n"], strict=True))


def test_a_larger_mixture_holds_the_smaller_one(found: dict[str, pd.DataFrame]) -> None:
    rows = found["Mixtures"].query("kind == 'centroid' and scheme == 'none'").set_index(["origin", "n", "draw"])["members"]
    for origin in ("images", "noise"):
        for draw in range(SMALL.draws):
            assert list(rows[origin, 2, draw])[:1] == list(rows[origin, 1, draw])


def test_centroids_weigh_evenly_and_random_mixtures_do_not(found: dict[str, pd.DataFrame]) -> None:
    rows = found["Mixtures"]
    np.testing.assert_allclose(rows[rows["kind"] == "centroid"]["effective_n"], rows[rows["kind"] == "centroid"]["n"])
    random = rows[rows["kind"] == "random"]
    assert (random["n"] == 2).all(), "a random mixture of one is a centroid of one, and is not made twice"
    assert random["effective_n"].between(1, 2).all()
    assert random["effective_n"].round(9).nunique() == SMALL.draws


def test_a_mixture_of_one_is_that_image_again(found: dict[str, pd.DataFrame]) -> None:
    """Denoising the latent of a mixture of one gives what replaying its inversion gave, in every scheme that reproduces."""
    rows = found["Mixtures"].query("kind == 'centroid' and n == 1 and origin == 'images'")
    np.testing.assert_allclose(rows["amplification"], 1, rtol=1e-6)
    single = found["Inversions"].query("origin == 'images'").reset_index()
    for _, row in rows.iterrows():
        assert row["norm_after"] == pytest.approx(single["norm"][row["members"][0]], rel=1e-6)
    pairs = rows.pivot_table(index="draw", columns="scheme", values="distance:pixels")
    np.testing.assert_allclose(pairs["none"], pairs["nin/channel"], atol=1e-6)


def test_noise_is_that_of_its_seeds_and_shares_nothing() -> None:
    probe = replace(SMALL, controls=("noise",), mixed=(), offsets=(), count=40)
    found = measured(exact_model("gaussian"), probe)
    rows = found["Inversions"].query("origin == 'noise'")
    drawn = rng.normal(tuple(rows["shape"].iloc[0]), "interpolation.noise.snow", range(40)).flatten(1).numpy()
    np.testing.assert_allclose(np.stack(rows["latent"]), drawn, rtol=1e-6)
    grams = np.stack(found["Alignments"].query("origin == 'noise'")["gram"])
    np.testing.assert_allclose(grams, drawn.astype(np.float64) @ drawn.T.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_noised_encodings_share_what_the_last_level_leaves_of_the_image() -> None:
    """Channel means of alpha z0 + sigma eps, over the scale, are the leak and noise of standard deviation sigma/(scale sqrt(hw))."""
    found = measured(exact_model("anisotropic"), replace(SMALL, controls=("noised",), mixed=("images",), offsets=(), count=60))
    rows = found["Inversions"].query("origin == 'noised'")
    rest = np.stack(rows["channel_mean"]) - np.stack(rows["leak"])
    channels, height, width = rows["shape"].iloc[0]
    error = 1 / np.sqrt(height * width)
    assert np.abs(rest.mean()) < 4 * error / np.sqrt(rest.size)
    assert rest.std() == pytest.approx(error, rel=4 / np.sqrt(2 * rest.size))
    assert rest.shape == (60, channels)


def test_what_the_model_made_is_inverted_to_the_noise_it_came_from() -> None:
    """The steps down undone by the fixed point, with nothing added to the pixels and nothing cut off them."""
    model, probe = exact_model("gmm"), replace(SMALL, inversion="fixed-point", iterations=30, perturbation=0.0, count=16, mixed=("images",))
    rows = measured(model, probe)["Inversions"].query("origin == 'generated'")
    assert model.path is not None
    noise = rng.normal(model.shape or (), "interpolation.generated.snow", range(16)).flatten(1).numpy()
    latents = np.stack(rows["latent"])
    close = [np.corrcoef(a, b)[0, 1] for a, b in zip(latents, noise, strict=True)]
    assert np.median(close) > 0.99, close


def test_an_offset_of_a_clean_latent_stays_where_it_is_laid() -> None:
    """An image is its latent in this world, so outside the top quarter nothing changes, and twice the offset moves four times as much."""
    rows = measured(plain(), replace(SMALL, offsets=(0.01, 0.02), offset_samples=6, resolution=8))["Offsets"]
    data = rows[rows["at"] == "data"].pivot_table(index="seed", columns="offset", values=["inside", "outside"])
    assert (data["outside"] == 0).all(axis=None)
    np.testing.assert_allclose(data["inside"][0.02], 4 * data["inside"][0.01], rtol=0.2)  # pixels are cut at 0 and 1
    assert (rows[rows["at"] == "noise"]["inside"] > 0).all()


def test_a_latent_that_is_not_finite_is_flagged_and_mixed_with_nothing() -> None:
    model = exact_model("gmm")
    broken = replace(model, codec=Torn(model))
    found = measured(broken, replace(SMALL, controls=("noised",), mixed=("images",), offsets=()))
    images = found["Inversions"].query("origin == 'images'")
    assert images["flag"].fillna("").tolist() == ["", "", "not finite", "", "", ""]
    aligned = found["Alignments"].query("origin == 'images'")
    assert "snow" in set(aligned["group"])
    assert len(aligned) == 5
    assert images["image"].iloc[2] not in set(aligned["image"])
    assert max(index for row in found["Mixtures"]["members"] for index in row) <= 4
    assert found["Mixtures"]["flag"].isna().all()


class Torn:
    """A codec that encodes the third image of a batch as not a number."""

    def __init__(self, model: Model) -> None:
        assert model.codec is not None
        self.codec = model.codec

    def encode(self, images: Tensor) -> Tensor:
        latents = self.codec.encode(images).clone()
        latents[2:3] = torch.nan
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        return self.codec.decode(latents)


def test_tuned_states_are_kept_and_mixed_with_the_latents(pipelines: Callable[[str], Path]) -> None:
    model = load(str(pipelines("sd")))
    probe = replace(
        SMALL,
        inversion="null-text",
        guidance_scale=3.0,
        num_inference_steps=2,
        iterations=1,
        controls=("noise",),
        mixed=("images", "noise"),
        offsets=(),
        replayed=6,
    )
    found = measured(model, probe)
    images = found["Inversions"].query("origin == 'images'")
    steps, tokens, width = images["nothing_shape"].iloc[0]
    assert steps == 2
    assert all(len(states) == 2 * steps * tokens * width for states in images["nothing"])
    assert images["reconstruction"].notna().all()
    assert found["Mixtures"]["flag"].isna().all()  # those of pure noise, for which nothing is tuned, too
    one = "n == 1 and scheme == 'none' and origin == 'images'"
    singles, untuned = found["Mixtures"].query(one), measured(model, replace(probe, inversion="ddim"))["Mixtures"].query(one)
    assert not np.allclose(singles["distance:pixels"], untuned["distance:pixels"], atol=1e-9)


def test_states_are_mixed_with_the_weights_of_their_latents() -> None:
    states = torch.arange(24.0).view(2, 3, 4)  # two steps, three images, four numbers
    rows = pa.table(kept_states(states))
    weights = np.array([[1.0, 0.0, 0.0], [0.25, 0.0, 0.75]])
    found = mixed_states(rows, weights)
    assert found is not None
    assert torch.allclose(found[:, 0], states[:, 0])
    assert torch.allclose(found[:, 1], 0.25 * states[:, 0] + 0.75 * states[:, 2])
    assert mixed_states(rows.drop_columns(["nothing"]), weights) is None


def test_latents_are_kept_in_units_of_noise_and_come_down_in_those_of_the_path() -> None:
    """On a variance-exploding path, where the two differ: what the model made has the length of noise, and a mixture of one comes back."""
    model = exact_model("gmm@ve")
    probe = replace(SMALL, inversion="fixed-point", iterations=20, num_inference_steps=30, mixed=("generated",), offsets=(0.5,))
    found = measured(model, replace(probe, count=8))
    lengths = found["Inversions"].groupby("origin")["norm"].mean().drop("images")
    assert lengths.between(0.8, 1.25).all(), lengths
    assert found["Inversions"]["residual"].notna().any()
    ones = found["Mixtures"].query("n == 1 and kind == 'centroid' and scheme == 'none'")
    own = found["Inversions"].query("origin == 'generated'").reset_index()["feature:pixels"]
    for _, row in ones.iterrows():
        np.testing.assert_allclose(row["feature:pixels"], own[row["members"][0]], atol=0.05)
    moved = found["Offsets"].query("at == 'noise'")
    assert (moved["inside"] > 1e-6).all()


def test_settings_that_a_method_does_not_use_change_no_cell() -> None:
    keys = {step.key for step in plan([SMALL])}
    assert keys == {step.key for step in plan([replace(SMALL, iterations=3)])}
    more = {step.key for step in plan([replace(SMALL, kept=4)])}
    aligned = {step.key for step in plan([SMALL]) if isinstance(step.cell, Alignments)}
    assert keys - more == aligned, "what a low-pass keeps is no part of latents or of mixtures by other schemes"
    pictures = {step.key for step in plan([replace(SMALL, keep_images=2)]) if isinstance(step.cell, Inversions)}
    assert pictures <= keys


def test_more_images_leave_the_cells_of_the_first_as_they_are() -> None:
    few, many = (set(plan([replace(SMALL, count=count, mixed=())])) for count in (16, 32))
    kept = {step.key for step in few if isinstance(step.cell, Inversions)}
    assert kept
    assert kept <= {step.key for step in many}


def test_what_an_origin_does_not_use_is_no_part_of_its_cells() -> None:
    def keys(probe: Interpolation, origin: str) -> set[str]:
        return {step.key for step in plan([probe]) if isinstance(step.cell, Inversions) and step.cell.origin == origin}

    changed = replace(SMALL, guidance_scale=3.0, perturbation=0.5, inversion="fixed-point", iterations=2, source_prompt="")
    for origin in ("noise", "noised"):
        assert keys(SMALL, origin) == keys(changed, origin)
    assert keys(SMALL, "images") == keys(replace(SMALL, guidance_scale=3.0, perturbation=0.5), "images")
    assert keys(SMALL, "generated") != keys(replace(SMALL, guidance_scale=3.0), "generated")
    kept = {step.cell.kept for step in plan([replace(SMALL, schemes=("fix", "nin/lowpass"))]) if isinstance(step.cell, Mixtures)}
    assert kept == {0, 3}


def test_runs_pair_by_draw(tmp_path: Path) -> None:
    rigs = [Rig(exact_model(world), {"pixels": Pixels()}, 16) for world in ("gmm", "gaussian")]
    runs = [start(rig, [SMALL], tmp_path / str(index)) for index, rig in enumerate(rigs)]
    both = paired(runs[0], runs[1], SMALL.name)
    assert both.common == 2 * 2 * (2 + 1) * SMALL.draws  # origins, schemes, centroids of 1 and 2 and mixtures of 2
    findings = SMALL.summarise({name: runs[0].tables(SMALL.name)[name] for name in runs[0].tables(SMALL.name)})
    assert findings.verdicts
    assert runs[0].report().is_file()


def test_groups_of_the_world_are_what_its_scenes_show() -> None:
    snow, red = groups("world", ("snow", "red circle"), 8, "never used")
    for source in snow.sources:
        assert isinstance(source, Rendered)
        assert scene(source).attributes.background == "snow"
    for source in red.sources:
        assert isinstance(source, Rendered)
        assert (scene(source).attributes.colour, scene(source).attributes.shape) == ("red", "circle")
    assert (snow.prompt, red.prompt) == ("a thing in the snow", "a red circle")
    assert caption_of("large night hat") == "a large thing with a hat at night"


def test_a_scene_holds_what_its_picture_shows() -> None:
    from diffprobe.worlds.scenes import held

    assert [held(3, index) for index in range(5)] == [one.attributes for one in worlds.scenes(5, 3)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("snwo", "unknown word for a group of scenes 'snwo': did you mean 'snow'?"),
        ("snow night", "the group 'snow night' names two kinds of background: no scene shows both"),
        ("", "a group of scenes needs a name"),
        ("purple star", "only 0 of 1600 scenes show 'purple star', not 4"),
    ],
)
def test_a_group_that_there_is_not_is_told(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        groups("world", (name,), 4, "")


def test_groups_of_a_folder_are_its_folders(tmp_path: Path) -> None:
    for group, number in (("cats", 5), ("dogs", 3)):
        (tmp_path / group).mkdir()
        for index in range(number):
            Image.new("RGB", (8, 8), (40 * index, 0, 0)).save(tmp_path / group / f"{index}.png")
    cats, dogs = groups(str(tmp_path), (), 3, "a photo of a {group}")
    assert (cats.name, dogs.name) == ("cats", "dogs")
    assert cats.prompt == "a photo of a cats"
    assert set(cats.sources) < set(groups(str(tmp_path), ("cats",), 5, "")[0].sources)
    with pytest.raises(UserError, match=r"the group 'dogs' .* has 3 images, not 4"):
        groups(str(tmp_path), (), 4, "")
    with pytest.raises(UserError, match=r"unknown group .*'cat': did you mean 'cats'"):
        groups(str(tmp_path), ("cat",), 3, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemes": ("nim",)}, "unknown scheme 'nim': did you mean 'nin'"),
        ({"schemes": ("nin/chanel",)}, "did you mean 'nin/channel'"),
        ({"schemes": ("nin/none",)}, "the scheme 'nin/none' is called 'nin'"),
        ({"schemes": ("nin", "nin")}, "'schemes' names a value twice"),
        ({"inversion": "dim"}, "unknown inversion 'dim': did you mean 'ddim'"),
        ({"inversion": "null-text"}, "null-text inversion tunes what guidance pushes away from"),
        ({"sizes": (4,)}, "mixtures of 4 need a pool of 8, not 6"),
        ({"sizes": (0,)}, "need a pool"),
        ({"sizes": (), "count": 1}, "mixtures need 'schemes', 'sizes'"),
        ({"inversion": "negative-prompt", "guidance_scale": 5.0}, "guidance pushes from the prompt to itself"),
        ({"count": 1, "sizes": (), "mixed": ()}, "count and control_count must be at least 2"),
        ({"draws": 1}, "draws of at least 2"),
        ({"controls": ("noises",)}, "unknown origin of latents 'noises': did you mean 'noise'"),
        ({"controls": ("images",)}, "leave 'images' out of controls"),
        ({"controls": ()}, "'noise' is mixed but not measured"),
        ({"mixtures": ("middle",)}, "unknown kind of mixture"),
        ({"groups": ()}, "groups of 'world' are what its scenes show"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"offsets": (0.0,)}, "offsets must lie above 0"),
        ({"kept": 0}, "kept must be at least 1"),
        ({"resolution": 60}, "multiple of 8"),
        ({"margin": 0.0}, "margin must lie above 0"),
        ({"num_inference_steps": 0}, "num_inference_steps at least 1"),
    ],
)
def test_bad_settings_get_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)  # type: ignore[arg-type]


def test_a_model_that_cannot_be_asked_is_told_why() -> None:
    model = exact_model("gmm")
    with pytest.raises(UserError, match="cannot take 5000 steps"):
        replace(SMALL, num_inference_steps=5000).check(model)
    with pytest.raises(UserError, match="does not say of which shape its noise is"):
        SMALL.check(replace(model, shape=None))
    with pytest.raises(UserError, match="images and controls would differ in size"):
        replace(SMALL, resolution=16).check(model)
    with pytest.raises(UserError, match="tunes a prompt's states"):
        replace(SMALL, inversion="null-text", guidance_scale=7.5).check(model)
    with pytest.raises(UserError, match="has no condition"):
        SMALL.check(replace(model, condition=None))
    shapeless = replace(model, shape=None)
    SMALL.suited(shapeless).check(shapeless)
    assert SMALL.suited(shapeless).controls == ("noised",)
    assert SMALL.suited(model) is SMALL


def test_presets_plan_what_they_say() -> None:
    paper = Interpolation.preset("paper")
    cells = [step.cell for step in plan([replace(paper, draws=32, sizes=(2,), schemes=("fix",), groups=("snow",))])]
    assert sum(len(cell.draws) for cell in cells if isinstance(cell, Mixtures)) == 32
    assert Inversion().method == "ddim"
    for budget in ("quick", "standard", "paper"):
        assert Interpolation.preset(budget).groups
