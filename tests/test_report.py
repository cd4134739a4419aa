"""The report: numbers as text, charts as specifications, and the page in a real browser."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from PIL import Image

from diffprobe import rng
from diffprobe.errors import UserError
from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Axis, Card, Chart, Exhibit, Findings
from diffprobe.report import charts, figures, numbers
from diffprobe.report.document import Document, Failure, Section, named_charts, unique
from diffprobe.report.page import write_report
from diffprobe.report.pictures import LARGEST, picture
from diffprobe.report.theme import CONFIG, DARK, LIGHT, paint

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "</script><b>bold</b> & \"quoted\" '{{ 7 * 7 }}'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")


# --- a document like a real one ---------------------------------------------------------------------------------------------------


def demo_document(media: Path) -> Document:
    """A document with charts of every kind, a gallery whose pictures it writes under `media`, nulls and hostile names."""
    media.mkdir(parents=True, exist_ok=True)
    identity = {
        "Model": "embedded (latent diffusion, 64 px)",
        "Weights": "blake2b 4f1c9a0e7d",
        "Instruments": "embedded-32, 5 attributes",
        "Study": "quick budget, seeds 0 to 31",
        "Versions": "diffprobe 0.1.0, torch 2.9.0, diffusers 0.36.0",
        "Machine": "CPU, 2 cores",
    }
    failures = (Failure("9f2c01ab", f"Edit(prompt={HOSTILE!r}, strength=0.9)", f"RuntimeError: not finite at step 3\n{HOSTILE}"),)
    sections = (_drift(media), _consistency(), _speciation())
    return Document("Embedded model", identity, 120, 119, failures, sections, media, "2026-01-02 03:04 UTC")


def _drift(media: Path) -> Section:
    laws, strengths = ("no prompt", "null prompt", "“Do nothing.”"), np.linspace(0.1, 0.9, 9)
    rows, curve = [], []
    for i, law in enumerate(laws):
        for s in strengths:
            mean = (0.12 + 0.07 * i) * s**2 + 0.01 + 0.006 * math.sin(9 * s + i)
            rows.append({"sigma": 2 * s, "drift": mean, "lo": mean - 0.02 * s, "hi": mean + 0.02 * s, "edit": law, "n": 32})
        curve += [{"sigma": 2 * s, "drift": (0.12 + 0.07 * i) * s**2 + 0.01, "edit": law} for s in np.linspace(0.05, 0.95, 30)]
    rows[4] = {**rows[4], "drift": math.nan, "hi": math.inf}
    line = Chart(
        "curve",
        "Drift against noise",
        "Distance between the picture and its edit; the instruction was to change nothing.",
        "line",
        tuple(rows),
        Axis("sigma", "noise-to-signal ratio σ"),
        Axis("drift", "cosine distance"),
        "lo",
        "hi",
        Axis("edit", "Instruction"),
        curves=tuple(curve),
    )
    parts = ("codec round trip", "noise and denoise", "prompt", "guidance", HOSTILE)
    bars = tuple({"part": p, "share": v, "lo": v - 0.03, "hi": v + 0.04} for p, v in zip(parts, (0.12, 0.41, 0.2, 0.24, 0.05), strict=True))
    bar = Chart(
        "budget",
        "Where the drift comes from",
        "Shares of the whole drift.",
        "bar",
        bars,
        Axis("part", "part"),
        Axis("share", "share of drift"),
        "lo",
        "hi",
    )
    values = [
        Estimate("drift", "k", 0.18234 + i / 31, 0.17111 + i / 31, 0.19402 + i / 31, 32, "", {"edit": law}) for i, law in enumerate(laws)
    ]
    values += [
        Estimate("drift", "distance", 0.01 * i, 0.009 * i, 0.0111 * i, 32, "", {"strength": i / 10, "domain": "people"})
        for i in range(1, 10)
    ]
    lost = Estimate("drift", "k", None, None, None, 0, "", {"edit": HOSTILE}, f"fewer than 3 strengths were measured {HOSTILE}")
    cards = (
        Card("Drift constant k", values[0], "Distance grows with k σ²; lower is steadier."),
        Card("At strength 0.5", Estimate("drift", "psnr", 27.8142, 27.31, 28.33, 32, "dB"), "Fidelity of the edit to the picture."),
        Card("Codec alone", Estimate("drift", "floor", 0.0000123, 0.0000101, 0.0000144, 32), "What remains with no noise at all."),
        Card(HOSTILE, lost, "Needs at least three strengths."),
    )
    verdicts = (
        "An edit that asks for nothing moves the picture by 0.18 σ² (95 % interval 0.171 to 0.194): three times the codec alone.",
        "Half of that comes from noise and denoising; the prompt's share cannot be told from zero.",
    )
    method = f"Each picture is edited with an instruction to change nothing.\n\nDistances are fitted with d = kσ² + c. {HOSTILE}"
    cites = ("The Drift Kernel. https://example.org/drift", HOSTILE)
    question = "What does an edit change when it is told to change nothing?"
    return Section("drift", question, Findings((*values, lost), verdicts, cards, (line, bar), _gallery(media)), method, cites)


def _gallery(media: Path) -> tuple[Exhibit, ...]:
    y, x = np.mgrid[0:64, 0:64] / 63.0
    generator = rng.stream("demo-gallery", 0)
    exhibits = []
    for i, label in enumerate(("worst", "median", "best", "random")):
        centre = generator.uniform(0.3, 0.7, 2)
        disc = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 0.05)[..., None]
        sky = np.stack([0.55 + 0.2 * y, 0.7 - 0.1 * x, 0.9 - 0.3 * y], -1)
        original = np.where(disc, generator.uniform(0.1, 0.95, 3), sky)
        edited = np.clip(original + (0.12, 0.06, 0.02, 0.04)[i] * np.stack([np.sin(9 * x), np.cos(7 * y), x * y], -1), 0, 1)
        for name, image in ((f"{i}-before.webp", original), (f"{i}-after.webp", edited)):
            Image.fromarray((image * 255).round().astype(np.uint8)).save(media / name, lossless=True)
        numbers_beside: dict[str, float | str] = {"distance": 0.4312 / (i + 1), "seed": 17 + i, "domain": HOSTILE if i == 3 else "shapes"}
        pictures = {"original": f"{i}-before.webp", "edited": f"{i}-after.webp"}
        exhibits.append(Exhibit(label, f"Seed {17 + i}, strength 0.{5 + i}", pictures, numbers_beside, contrast=True))
    gone = {"original": "0-before.webp", "edited": "../outside.webp"}
    return (*exhibits, Exhibit("random", "A picture that is gone", gone, contrast=True))


def _consistency() -> Section:
    prompts = ("a red disc on a blue ground", "two squares", "a green triangle, small", "night", HOSTILE)
    rows: list[dict[str, Any]] = [
        {"prompt": p, "score": 80 - 6 * i - 3 * j, "lo": 77 - 6 * i - 3 * j, "hi": 82 - 6 * i - 3 * j, "sampler": s}
        for i, p in enumerate(prompts)
        for j, s in enumerate(("DDIM", "ancestral"))
    ]
    interval = Chart(
        "prompts",
        "Consistency by prompt",
        "One hundred means that all images of a prompt are alike.",
        "interval",
        tuple(rows),
        Axis("prompt", "prompt"),
        Axis("score", "semantic consistency"),
        "lo",
        "hi",
        Axis("sampler", "Sampler"),
    )
    generator = rng.stream("demo-scatter", 0)
    cloud = [
        {"likeness": float(a), "rank": float(10 ** (2 * b)), "sampler": s, "image": i}
        for s in ("DDIM", "ancestral")
        for i, (a, b) in enumerate(generator.uniform(0, 1, (60, 2)))
    ]
    cloud.append({"likeness": 0.5, "rank": -1.0, "sampler": "DDIM", "image": 99})
    scatter = Chart(
        "cloud",
        "Likeness and rank",
        "One point an image.",
        "scatter",
        tuple(cloud),
        Axis("likeness", "cosine similarity"),
        Axis("rank", "effective rank", log=True),
        series=Axis("sampler", "Sampler"),
    )
    values = tuple(
        Estimate("consistency", "score", r["score"], r["lo"], r["hi"], 20, "", {"prompt": r["prompt"], "sampler": r["sampler"]})
        for r in rows
    )
    cards = (
        Card("Semantic consistency", Estimate("consistency", "score", 71.4, 69.92, 72.81, 100), "0 to 100, over all prompts."),
        Card("Images", Estimate("consistency", "images", 12000, None, None, 12000), "Twenty a prompt."),
    )
    verdicts = ("The ancestral sampler is less consistent by 3.0 points (2.1 to 3.9).",)
    question = "How alike are the images that one prompt gives?"
    return Section(
        "consistency", question, Findings(values, verdicts, cards, (interval, scatter)), "Mean pairwise cosine of embeddings.", ()
    )


def _speciation() -> Section:
    attributes, scales = ("shape", "colour", "size"), (1.0, 2.0, 4.0, 7.5)
    rows = [
        {
            "sigma": float(s),
            "entropy": (v := 1 / (1 + (0.6 * (i + 1) * w**0.3 / s) ** 2)),
            "lo": v * 0.9,
            "hi": v * 1.05,
            "attribute": a,
            "scale": w,
        }
        for i, a in enumerate(attributes)
        for w in scales
        for s in np.geomspace(0.02, 20, 14)
    ]
    panels = Chart(
        "entropy",
        "When each attribute is decided",
        "Entropy of the class given the noisy picture, as a share of the prior's.",
        "line",
        tuple(rows),
        Axis("sigma", "σ", log=True),
        Axis("entropy", "class entropy"),
        "lo",
        "hi",
        Axis("attribute", "Attribute"),
        Axis("scale", "guidance"),
    )
    shares = [
        {"level": f"{s:.1f}", "share": w, "attribute": a} for s in (0.2, 1.0, 5.0) for a, w in zip(attributes, (0.5, 0.3, 0.2), strict=True)
    ]
    stack = Chart(
        "shares",
        "Share of decisions by level",
        "Each bar sums to one.",
        "stack",
        tuple({**r, "level": float(str(r["level"]))} for r in shares),
        Axis("level", "σ"),
        Axis("share", "share"),
        series=Axis("attribute", "Attribute"),
    )
    values = tuple(
        Estimate("speciation", "time", 1.2 * (i + 1), 1.1 * (i + 1), 1.4 * (i + 1), 64, "σ", {"attribute": a})
        for i, a in enumerate(attributes)
    )
    cards = (Card("Shape is decided at", values[0], "Guidance matters most around here."),)
    verdicts = ("Shape is decided at σ = 1.20 (1.10 to 1.40), before colour and size.",)
    question = "At which noise level does a sample decide what it is?"
    return Section("speciation", question, Findings(values, verdicts, cards, (panels, stack)), "Posterior entropies along the path.", ())


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    return demo_document(tmp_path_factory.mktemp("run") / "media")


@pytest.fixture(scope="module")
def page_file(document: Document, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(document, tmp_path_factory.mktemp("out") / "report.html")


def _chart(kind: Literal["line", "interval", "bar", "scatter", "stack"] = "line", *rows: dict[str, Any], **changes: Any) -> Chart:
    return dataclasses.replace(Chart("c", "Title", "Caption.", kind, rows, Axis("a.b[0]", "across"), Axis("y", "up")), **changes)


def _blob(page_file: Path) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page_file.read_text("utf-8"), re.S)
    assert len(found) == 1
    return dict(json.loads(found[0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON")))


# --- numbers ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "lo", "hi", "text", "interval"),
    [
        (0.412345, 0.39, 0.43, "0.412", "[0.390, 0.430]"),
        (27.8142, 27.31, 28.33, "27.8", "[27.3, 28.3]"),
        (1.0, 0.9998, 1.0002, "1.0000", "[0.9998, 1.0002]"),
        (12345.0, 12000.0, 12700.0, "12,345", "[12,000, 12,700]"),
        (1.234e-5, 1.1e-5, 1.36e-5, "1.23 ×10⁻⁵", "[1.10, 1.36] ×10⁻⁵"),
        (-0.5, -0.6, -0.4, "−0.500", "[−0.600, −0.400]"),
        (0.0, -0.012, 0.012, "0.0000", "[−0.0120, 0.0120]"),
        (0.0, None, None, "0.00", ""),
        (2.0, 1.0, math.inf, "2.00", "[1.00, ∞]"),
        (9.999, 9.9, 10.1, "10.00", "[9.90, 10.10]"),
    ],
)
def test_estimates_are_rounded_to_three_digits(value: float, lo: float | None, hi: float | None, text: str, interval: str) -> None:
    shown = numbers.shown(Estimate("p", "q", value, lo, hi, 9))
    assert (shown.value, shown.interval, shown.reason) == (text, interval, "")


def test_what_is_null_says_why() -> None:
    assert numbers.shown(Estimate("p", "q", None, None, None, 0, reason="too few")) == ("—", "", "", "too few")
    assert "finite" in numbers.shown(Estimate("p", "q", math.nan, None, None, 3)).reason
    assert numbers.shown(Estimate("p", "q", None, None, None, 0)).reason


def test_a_flat_estimate_keeps_every_facet() -> None:
    row = numbers.flat(Estimate("p", "q", math.nan, 0.0, float(np.float32(1)), 4, facets={"n": 7, "edit": "none"}))
    assert row == {
        "probe": "p",
        "quantity": "q",
        "facet_n": 7,
        "edit": "none",
        "value": None,
        "lo": 0.0,
        "hi": 1.0,
        "n": 4,
        "unit": "",
        "reason": None,
    }


# --- charts -----------------------------------------------------------------------------------------------------------------------


def test_rows_hold_only_what_can_be_drawn() -> None:
    rows = ({"a.b[0]": 1.0, "y": math.nan, "l": 0.1, "h": 1}, {"a.b[0]": np.int64(2), "y": 0.5, "l": -1.0, "h": math.inf})
    chart = _chart("line", *rows, y=Axis("y", "up", log=True), lo="l", hi="h")
    assert charts.rows(chart) == [
        {"x": 1.0, "y": None, "lo": 0.1, "hi": 1, "curve": False},
        {"x": 2, "y": 0.5, "lo": None, "hi": None, "curve": False},
    ]
    assert "Without a value to draw: 1 of 2." in charts.legend(chart)


def test_a_band_below_zero_ends_at_the_least_positive_number_of_a_log_axis() -> None:
    chart = _chart("line", {"a.b[0]": 1, "y": 0.5, "l": -1.0, "h": 2.0}, {"a.b[0]": 2, "y": 0.0, "l": -1.0, "h": 0.2}, lo="l", hi="h")
    low, zero = charts.rows(dataclasses.replace(chart, y=Axis("y", "up", log=True)))
    assert (low["lo"], low["y"], zero["y"]) == (0.2, 0.5, None)


def test_a_series_keeps_its_colour_throughout_the_document() -> None:
    first = _chart("line", {"a.b[0]": 1, "y": 1, "s": "one"}, {"a.b[0]": 1, "y": 1, "s": "two"}, series=Axis("s", "S"))
    second = _chart("scatter", {"a.b[0]": 1, "y": 1, "s": "two"}, {"a.b[0]": 1, "y": 1, "s": "three"}, series=Axis("s", "S"))
    domains = charts.domains([first, second])
    colours = [charts.spec(chart, domains)["layer"][-1]["encoding"]["color"] for chart in (first, second)]
    assert [colour["scale"]["domain"] for colour in colours] == [["one", "two", "three"]] * 2
    assert [colour["legend"]["values"] for colour in colours] == [["one", "two"], ["two", "three"]]


def test_words_run_down_the_page() -> None:
    words = charts.spec(_chart("bar", {"a.b[0]": "long words", "y": 1}), {})["layer"][0]["encoding"]
    numeric = charts.spec(_chart("bar", {"a.b[0]": 3, "y": 1}), {})["layer"][0]["encoding"]
    assert (words["y"]["field"], words["x"]["field"]) == ("x", "y")
    assert (numeric["y"]["field"], numeric["x"]["field"]) == ("y", "x")


@pytest.mark.parametrize("kind", ["line", "interval", "bar", "scatter", "stack"])
def test_an_empty_chart_is_a_valid_specification(kind: Literal["line", "interval", "bar", "scatter", "stack"]) -> None:
    assert charts.spec(_chart(kind, lo="l", hi="h", y=Axis("y", "up", log=True)), {})["layer"]


def test_colour_names_are_replaced_by_colours() -> None:
    for scheme in (LIGHT, DARK):
        assert "--" not in json.dumps(paint(CONFIG, scheme))
        assert LIGHT.keys() == scheme.keys()


def test_names_are_safe_and_unique() -> None:
    assert unique(["Drift curve", "drift/curve", "../..", "", "drift-curve-2"]) == [
        "drift-curve",
        "drift-curve-2",
        "unnamed",
        "unnamed-2",
        "drift-curve-2-2",
    ]


def test_figures_are_written_as_vectors_and_pixels(document: Document, tmp_path: Path) -> None:
    few = dataclasses.replace(document, sections=document.sections[:1])
    paths = figures.write_figures(few, tmp_path / "figures")
    assert [path.name for path in paths] == [f"{name}.{kind}" for name in named_charts(few) for kind in ("svg", "png")]
    for vector, raster in zip(paths[::2], paths[1::2], strict=True):
        assert vector.read_text("utf-8").count("<path") > 5
        with Image.open(raster) as image:
            assert len(image.convert("L").getcolors() or ()) > 10


# --- pictures ---------------------------------------------------------------------------------------------------------------------


def test_small_pictures_stay_as_they_are_and_large_ones_shrink(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "small.webp", lossless=True)
    Image.new("RGB", (2048, 1024), "red").save(tmp_path / "large.png")
    (tmp_path / "text.webp").write_text("no picture")
    small, large = picture(tmp_path, "small.webp"), picture(tmp_path, "large.png")
    assert small is not None
    assert small[1:] == (64, 48, True)
    assert base64.b64decode(small.uri.split(",")[1]) == (tmp_path / "small.webp").read_bytes()
    assert large is not None
    assert large[1:] == (LARGEST, LARGEST // 2, False)
    assert [picture(tmp_path, name) for name in ("text.webp", "absent.webp", "", "../" + tmp_path.name + "/../x")] == [None] * 4


def test_a_picture_outside_the_media_folder_is_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.webp")
    (tmp_path / "media").mkdir()
    assert picture(tmp_path / "media", "../secret.webp") is None


# --- the file ---------------------------------------------------------------------------------------------------------------------


def test_the_report_is_one_file_without_links_to_load(page_file: Path) -> None:
    assert [path.name for path in page_file.parent.iterdir()] == ["report.html"]
    text = page_file.read_text("utf-8")
    text = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"<(script|img|link|iframe|source)[^>]*(src|href)\s*=\s*(?![\"']?data:)", text)
    assert page_file.stat().st_size < 1_300_000


def test_the_blob_holds_every_estimate(page_file: Path, document: Document) -> None:
    blob = _blob(page_file)
    assert blob["estimates"] == [numbers.flat(e) for section in document.sections for e in section.findings.estimates]
    assert list(blob["charts"]) == list(named_charts(document))
    assert HOSTILE in {row.get("prompt") for row in blob["estimates"]}


def test_equal_documents_give_equal_bytes(page_file: Path, document: Document, tmp_path: Path) -> None:
    assert write_report(document, tmp_path / "deep" / "again.html").read_bytes() == page_file.read_bytes()


def test_a_folder_is_refused(document: Document, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report\.html"):
        write_report(document, tmp_path)


def test_an_empty_run_has_a_page_and_a_complete_one_no_notice(document: Document, tmp_path: Path) -> None:
    empty = dataclasses.replace(document, planned=0, done=0, failed=(), sections=())
    text = write_report(empty, tmp_path / "empty.html").read_text("utf-8")
    assert "Nothing has been measured yet" in text
    assert "incomplete" not in text.split("<nav")[0]


# --- the page in a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright (extra: dev)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *QUIET])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def seen() -> list[str]:
    """What the page asked for or complained of, in any test of this file; each test adds to it."""
    return []


@pytest.fixture(scope="module")
def page(browser: Browser, page_file: Path, seen: list[str]) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.on("console", lambda message: seen.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"page error: {error}"))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else seen.append(request.url))
    page.goto(page_file.as_uri())
    _drawn(page, 1)
    return page


def _drawn(page: Page, turn: int) -> None:
    page.wait_for_function(f"Number(document.documentElement.dataset.drawn) >= {turn}")


def _saved(page: Page, selector: str) -> bytes:
    with page.expect_download() as download:
        page.locator(selector).first.click()
    return Path(download.value.path()).read_bytes()


def test_every_chart_draws_its_marks(page: Page, document: Document) -> None:
    count = "(plot) => plot.querySelectorAll('svg .mark-group path, svg [role=graphics-symbol]').length"
    marks = [plot.evaluate(count) for plot in page.locator("[data-chart]").all()]
    assert len(marks) == len(named_charts(document))
    assert min(marks) >= 5


def test_verdicts_come_before_charts(page: Page, document: Document) -> None:
    verdicts = page.locator(".verdict").all_inner_texts()
    assert verdicts == [verdict for section in document.sections for verdict in section.findings.verdicts]
    assert page.locator(".verdict").last.bounding_box()["y"] < page.locator(".plot").first.bounding_box()["y"]  # type: ignore[index]


def test_what_failed_and_what_is_missing_is_said(page: Page) -> None:
    assert "119 of 120 planned cells" in page.locator(".notice").inner_text()
    assert "not finite at step 3" in page.locator("#failures").inner_text()
    assert page.locator(".card .reason").count() == 1
    assert "not in the run's media folder" in page.locator(".missing").inner_text()


def test_hostile_strings_are_text(page: Page) -> None:
    assert page.locator("b").count() == 0
    for place in (".card h3", "#estimates td", ".exhibit dd", "#failures td", ".method li"):
        assert any(HOSTILE in (text or "") for text in page.locator(place).all_text_contents()), place


def test_a_tooltip_follows_the_pointer(page: Page) -> None:
    page.locator("#figure-drift-budget .mark-rect path").nth(1).hover()
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "noise and denoise" in tip.inner_text()
    assert "0.41" in tip.inner_text()


def test_a_column_named_image_is_no_picture_to_load(page: Page) -> None:
    page.locator("#figure-consistency-cloud .mark-symbol path").nth(3).hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible", has_text="effective rank")
    tip.wait_for()
    assert "Image" in tip.inner_text()
    assert tip.locator("img").count() == 0


def test_the_legend_fades_other_series(page: Page) -> None:
    points = page.locator("#figure-drift-curve .mark-symbol.role-mark path")
    opacities = "(all) => new Set(all.map((e) => e.getAttribute('opacity') ?? '1')).size"
    assert points.evaluate_all(opacities) == 1
    page.locator("#figure-drift-curve .role-legend-label text").first.click()
    page.wait_for_function(f"({opacities})([...document.querySelectorAll('#figure-drift-curve .mark-symbol.role-mark path')]) == 2")


def test_the_slider_answers_to_the_keyboard(page: Page) -> None:
    slider = page.locator(".compare input").first
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "3 % original"
    clip = page.locator(".compare .over").first.evaluate("(e) => getComputedStyle(e).clipPath")
    assert clip == "inset(0px calc(100% - 3%) 0px 0px)" or "97%" in clip


def test_the_difference_is_that_of_the_pictures(page: Page, document: Document) -> None:
    read = "(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    pixels = np.asarray(page.locator("canvas.difference").first.evaluate(read)).reshape(64, 64, 4)[..., :3]
    before, after = (np.asarray(Image.open(document.media / f"0-{name}.webp").convert("RGB"), dtype=int) for name in ("before", "after"))
    assert np.array_equal(pixels, np.minimum(4 * abs(before - after), 255))


def test_downloads_hold_every_estimate(page: Page, page_file: Path) -> None:
    estimates = _blob(page_file)["estimates"]
    rows = list(csv.DictReader(io.StringIO(_saved(page, "#csv").decode("utf-8"), newline="")))
    assert [row["quantity"] for row in rows] == [estimate["quantity"] for estimate in estimates]
    assert [float(row["value"]) if row["value"] else None for row in rows] == [estimate["value"] for estimate in estimates]
    assert [row["edit"] or None for row in rows] == [estimate.get("edit") for estimate in estimates]
    assert json.loads(_saved(page, "#json"))["estimates"] == estimates


def test_a_chart_can_be_saved(page: Page) -> None:
    assert b"<svg" in _saved(page, "#figure-drift-curve [data-save=svg]")
    assert _saved(page, "#figure-drift-curve [data-save=png]").startswith(b"\x89PNG")
    assert b"cosine distance" in _saved(page, "#figure-drift-curve [data-save=csv]").splitlines()[0]


def test_the_table_sorts_and_filters(page: Page) -> None:
    visible = page.locator("#estimates tbody tr:visible")
    everything = visible.count()
    page.fill("#filter", "distance 0.4")
    assert 1 <= visible.count() < everything
    assert all("distance" in text for text in visible.all_inner_texts())
    page.fill("#filter", "")
    page.select_option("#probe", "speciation")
    assert visible.count() == 3
    page.select_option("#probe", "")
    header = page.locator("#estimates th button[data-key=value]")
    for direction, sign in (("ascending", 1), ("descending", -1)):
        header.click()
        assert page.locator(f"#estimates th[aria-sort={direction}]").count() == 1
        texts = page.locator("#estimates tbody tr td:nth-child(4)").all_inner_texts()
        assert texts[-1] == "—"
        values = [sign * float(text.replace(",", "")) for text in texts[:-1]]
        assert values == sorted(values)


def test_every_picture_has_a_text_and_every_control_a_name(page: Page) -> None:
    assert page.locator(".tiles img:not([alt])").count() == 0
    assert page.locator("canvas.difference:not([aria-label])").count() == 0
    named = "(e) => Boolean(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim())"
    unnamed = [
        control.evaluate("(e) => e.outerHTML") for control in page.locator("button, input, select").all() if not control.evaluate(named)
    ]
    assert unnamed == []
    levels = [int(name[1]) for name in page.locator("h1, h2, h3, h4").evaluate_all("(all) => all.map((e) => e.tagName)")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    turn = int(page.evaluate("document.documentElement.dataset.drawn"))
    if page.viewport_size != {"width": width, "height": 900}:
        page.set_viewport_size({"width": width, "height": 900})
        _drawn(page, turn + 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inner = page.evaluate(
        "[...document.querySelectorAll('.plot')].map((p) => p.querySelector('svg').getBoundingClientRect().width - p.clientWidth)"
    )
    assert max(inner) <= 1


def test_the_dark_scheme_reaches_page_and_charts(page: Page) -> None:
    bar = "document.querySelector('#figure-drift-budget svg .mark-rect path')"
    look = f"[getComputedStyle(document.body).backgroundColor, {bar}.getAttribute('fill')]"
    light, turn = page.evaluate(look), int(page.evaluate("document.documentElement.dataset.drawn"))
    page.emulate_media(color_scheme="dark")
    _drawn(page, turn + 1)
    dark = page.evaluate(look)
    assert (light[1], dark[1]) == (LIGHT["series-1"], DARK["series-1"])
    assert light[0] != dark[0]


def test_the_page_asked_for_nothing_and_complained_of_nothing(page: Page, seen: list[str]) -> None:
    assert page.evaluate("performance.getEntriesByType('resource').filter((r) => !/^(data|blob|file):/.test(r.name)).length") == 0
    assert seen == []


def test_a_chart_without_a_single_interval_draws_none() -> None:
    rows = tuple({"n": n, "value": n / 2, "lo": None, "hi": None} for n in (1, 2, 3))
    chart = Chart("a", "A", "A caption.", "line", rows, Axis("n", "n"), Axis("value", "value"), lo="lo", hi="hi")
    drawn = json.dumps(charts.spec(chart, charts.domains([chart])))
    assert '"field": "lo"' not in drawn
    assert "intervals" not in charts.legend(chart)
    some = dataclasses.replace(chart, rows=(*rows, {"n": 4, "value": 2, "lo": 1, "hi": 3}))
    assert '"field": "lo"' in json.dumps(charts.spec(some, charts.domains([some])))
    assert "intervals" in charts.legend(some)
