"""Pictures as users have them, written with Pillow into a folder and read back; manifests with every fault; the choice of a few."""

from __future__ import annotations

import csv
import hashlib
import json
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffprobe import images, worlds
from diffprobe.errors import UserError
from diffprobe.images import Drawn, Picture, Rendered, Source, farthest_points, find, load, read_manifest, sets, stratified
from diffprobe.probes.base import key
from diffprobe.probes.drift.cells import Originals
from diffprobe.worlds.foreign import KINDS, Kind

RAMP = np.stack([np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))] * 3, axis=-1)  # dark to light, left to right
RAMP[:8, :, 0] = 255  # the top quarter is reddish


def source(path: Path, **changes: Any) -> Source:
    return Source(**{"path": str(path), "digest": images.digest(path), "domain": "all", **changes})


def loaded(path: Path, size: int = 32) -> torch.Tensor:
    found = load([source(path)], size)
    assert found.shape == (1, 3, size, size)
    assert found.dtype == torch.float32
    return found[0]


def save(path: Path, pixels: np.ndarray[Any, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def truth() -> torch.Tensor:
    return torch.from_numpy(RAMP).permute(2, 0, 1) / 255


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.webp", {"lossless": True}), ("a.bmp", {}), ("a.TIFF", {})])
def test_lossless_files_come_back_exactly(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    assert torch.equal(loaded(save(tmp_path / name, RAMP, **options)), truth())


def test_the_orientation_of_exif_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = save(tmp_path / "turned.jpg", np.rot90(RAMP).copy(), exif=exif, quality=98, subsampling=0)
    assert torch.allclose(loaded(path), truth(), atol=0.06)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    alpha = np.full((32, 32, 1), 64, np.uint8)
    expected = truth() * (64 / 255) + (1 - 64 / 255)
    assert torch.allclose(loaded(save(tmp_path / "rgba.png", np.concatenate([RAMP, alpha], -1))), expected, atol=1e-6)
    grey = np.concatenate([RAMP[..., 1:2], alpha], -1)
    assert torch.allclose(loaded(save(tmp_path / "la.png", grey))[0], expected[1], atol=1e-6)


def test_a_transparent_palette_lies_over_white(tmp_path: Path) -> None:
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([200, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 1)
    picture.save(tmp_path / "p.png")
    assert torch.allclose(loaded(tmp_path / "p.png", 8)[:, 4, 4], torch.tensor([200 / 255, 0, 0]))
    picture.save(tmp_path / "pt.png", transparency=0)
    found = loaded(tmp_path / "pt.png", 8)
    assert found[:, 4, 4].tolist() == [1, 1, 1]
    assert found[:, 0, 0].tolist() == [0, 0, 1]


def test_grey_of_eight_and_sixteen_bits(tmp_path: Path) -> None:
    grey = RAMP[..., 1]
    assert torch.equal(loaded(save(tmp_path / "l.png", grey)), truth()[1].expand(3, 32, 32))
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    found = loaded(save(tmp_path / "deep.png", deep))
    assert torch.allclose(found[0], torch.from_numpy(deep.astype(np.float32)) / 65535, atol=1e-7)
    assert len(np.unique(found[0].numpy())) == 1024  # more than eight bits hold


def test_bilevel_and_cmyk(tmp_path: Path) -> None:
    Image.fromarray(RAMP[..., 1] > 100).save(tmp_path / "one.png")
    assert set(np.unique(loaded(tmp_path / "one.png").numpy()).tolist()) == {0.0, 1.0}
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    assert torch.allclose(loaded(tmp_path / "cmyk.jpg", 16).mean((1, 2)), torch.tensor([0.0, 1.0, 1.0]), atol=0.05)


def test_the_central_square_is_taken_or_the_whole_squeezed(tmp_path: Path) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    path = save(tmp_path / "wide.png", wide)
    assert torch.equal(load([source(path)], 16), torch.ones(1, 3, 16, 16))
    squeezed = load([source(path)], 16, crop=False)
    assert float(squeezed.mean()) == pytest.approx(1 / 3, abs=0.02)
    tall = save(tmp_path / "tall.png", wide.transpose(1, 0, 2).copy())
    assert torch.equal(load([source(tall)], 16), torch.ones(1, 3, 16, 16))


def test_resizing_is_antialiased_and_keeps_more_than_eight_bits(tmp_path: Path) -> None:
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    found = loaded(save(tmp_path / "board.png", board.astype(np.uint8)), 16)
    assert torch.allclose(found[:, 2:-2, 2:-2], torch.full((3, 12, 12), 0.5), atol=0.01)
    small = loaded(save(tmp_path / "ramp.png", RAMP), 10)
    assert float((small * 255 - (small * 255).round()).abs().max()) > 0.1
    theirs = np.asarray(Image.fromarray(RAMP).resize((10, 10), Image.Resampling.BILINEAR), np.float32)
    assert torch.allclose(small * 255, torch.from_numpy(theirs).permute(2, 0, 1), atol=1.01)


def broken(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.png"
    if kind == "corrupt":
        save(path, RAMP)
        data = bytearray(path.read_bytes())
        data[8:16] = b"\xff" * 8
        path.write_bytes(data)
    elif kind == "text":
        path.write_text("this is no picture")
    elif kind == "empty":
        path.touch()
    elif kind == "bomb":
        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
        parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize(("kind", "word"), [("corrupt", "replace"), ("text", "replace"), ("empty", "0 bytes"), ("bomb", "million pixels")])
def test_what_is_no_picture_is_named(tmp_path: Path, kind: str, word: str) -> None:
    path = broken(tmp_path, kind)
    for attempt in (lambda: find(tmp_path), lambda: load([source(path)], 8)):
        with pytest.raises(UserError, match=f"{kind}.png.*{word}") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_large_header_below_pillows_own_limit_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "large.png", RAMP)
    monkeypatch.setattr(images, "PIXEL_LIMIT", 1000)
    with pytest.raises(UserError, match=r"large\.png"):
        load([source(path)], 8)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp"])
def test_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path / name, noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cut\..*(damaged|replace)"):
        load([source(path)], 8)


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(UserError, match="8 or 16 bits"):
        loaded(tmp_path / "f.tiff", 8)


def test_a_file_that_changed_or_went_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RAMP)
    listed = source(path)
    save(path, 255 - RAMP)
    with pytest.raises(UserError, match="has changed since it was listed"):
        load([listed], 8)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*a\.png \(No such file"):
        load([listed], 8)


def test_find_lists_what_is_below_with_its_domain(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/deeper/1.JPG", "a/3.webp", "top.png", ".hidden/4.png", "a/.5.png"):
        save(tmp_path / name, RAMP, format="PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    found = find(tmp_path)
    assert [(Path(s.path).relative_to(tmp_path).as_posix(), s.domain) for s in found] == [
        ("a/3.webp", "a"),
        ("b/2.png", "b"),
        ("b/deeper/1.JPG", "b"),
        ("top.png", "all"),
    ]
    assert found[0].digest == "sha256:" + hashlib.sha256((tmp_path / "a/3.webp").read_bytes()).hexdigest()
    assert len(load(found, 8)) == 4


def test_find_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image below"):
        find(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        find(tmp_path / "missing")


def test_many_small_files_are_listed_fast(tmp_path: Path) -> None:
    data = save(tmp_path / "0.png", RAMP).read_bytes()
    for i in range(1, 1000):
        (tmp_path / f"{i}.png").write_bytes(data)
    began = time.perf_counter()
    assert len(find(tmp_path)) == 1000
    assert time.perf_counter() - began < 3  # a tenth of what ten thousand may take on a slow machine


def test_rendered_scenes_are_those_of_the_world() -> None:
    sources = [Rendered(5, 3), Rendered(5, 0, ("night",))]
    found = load(sources, 64)
    assert torch.equal(found[0], torch.from_numpy(worlds.scenes(4, 5)[3].image).permute(2, 0, 1) / 255)
    assert images.scene(sources[1]).attributes.domain == "night"
    assert images.scene(sources[0]).caption == worlds.scenes(4, 5)[3].caption
    assert load(sources, 16).shape == (2, 3, 16, 16)
    assert load([], 16).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_scene_is_loaded_by_its_number(kind: Kind) -> None:
    truth = worlds.foreign(4, 5, kind=kind)[3]
    source = Drawn(kind, 5, 3)
    assert torch.equal(load([source, Rendered(5, 3)], 64)[0], torch.from_numpy(truth.image).permute(2, 0, 1) / 255)
    assert images.caption(source) == truth.caption
    assert (images.name(source), images.content(source), images.domain(source)) == (f"{kind} 5/3", f"{kind} 5/3", kind)


def test_scenes_and_files_tell_their_name_content_domain_and_caption(tmp_path: Path) -> None:
    scene, file = Rendered(5, 0, ("night",)), source(save(tmp_path / "a.png", RAMP), domain="faces", caption="a ramp")
    assert (images.name(scene), images.content(scene), images.domain(scene)) == ("scene 5/0", "scene 5/0", "night")
    assert images.caption(scene) == images.scene(scene).caption
    assert (images.name(file), images.content(file), images.domain(file)) == (str(tmp_path / "a.png"), file.digest, "faces")
    assert images.caption(file) == "a ramp"
    with pytest.raises(UserError, match=r"a\.png has no caption: add one to the manifest"):
        images.caption(source(tmp_path / "a.png"))


def test_pictures_of_every_kind_are_told_apart_in_the_identity_of_a_cell() -> None:
    pictures: list[Picture] = [Rendered(5, 3), Rendered(5, 4), *(Drawn(kind, 5, 3) for kind in KINDS), Drawn("noise", 5, 4)]
    assert len({key(Originals((picture,), None, None, keep=False)) for picture in pictures}) == len(pictures)


@pytest.mark.parametrize("spec", ["world", *KINDS])
def test_sets_that_are_drawn(spec: str) -> None:
    label, few = sets(spec, 3)
    assert label == spec
    assert few == [Rendered(2024, i) if spec == "world" else Drawn(spec, 2024, i) for i in range(3)]  # type: ignore[arg-type]
    assert len(sets(spec, None)[1]) == 100
    assert sets(f"mine={spec}", 3) == ("mine", few)


def test_sets_of_files(tmp_path: Path, entries: list[Entry]) -> None:
    folder = tmp_path / "photos"
    for i in range(12):
        save(folder / ("day" if i < 6 else "night") / f"{i:02}.png", RAMP)
    label, everything = sets(f"{folder}/", None)
    assert (label, everything) == ("photos", find(folder))
    assert sets(str(folder), 12) == sets(str(folder), 99) == ("photos", everything)
    label, few = sets(f" some = {folder}", 5)
    assert label == "some"
    assert set(few) < set(everything)
    assert {images.domain(one) for one in few} == {"day", "night"}  # not the first by name
    assert sets(str(folder), 8)[1][:5] == few
    manifest = write(tmp_path, entries)
    assert sets(str(manifest), None) == (tmp_path.name, read_manifest(manifest))


def test_a_folder_may_bear_the_sign_of_a_label_or_the_name_of_a_drawn_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a=b", "noise"):
        save(tmp_path / name / "a.png", RAMP)
    monkeypatch.chdir(tmp_path)
    assert sets("./a=b", None) == ("a=b", find("./a=b"))
    assert sets("noise", 1)[1] == [Drawn("noise", 2024, 0)]
    assert sets("./noise", None) == ("noise", find("./noise"))


@pytest.mark.parametrize(
    ("spec", "count", "told"),
    [
        (
            "nowhere",
            None,
            r"no images at 'nowhere': give a folder, a manifest \(\.json, \.jsonl, \.csv\), or one of world, inverted, strokes",
        ),
        ("label=nowhere", 3, "no images at 'nowhere'"),
        ("=world", 3, "'=world' lacks a side: give '<label>=<images>'"),
        ("label=", 3, "'label=' lacks a side"),
        ("", 3, "no images at ''"),
        ("world", 0, "count must be at least 1, not 0"),
        ("x" * 5000, None, "no images at 'xxx"),
    ],
)
def test_sets_that_are_none(spec: str, count: int | None, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        sets(spec, count)
    assert "\n" not in str(caught.value)


Entry = dict[str, Any]


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    found: list[Entry] = []
    for i, domain in enumerate(("faces", "aerial")):
        path = save(tmp_path / domain / f"{i}.png", RAMP)
        data = path.read_bytes()
        digest = {"md5": hashlib.md5(data).hexdigest()} if i else {"sha256": hashlib.sha256(data).hexdigest().upper()}
        found.append({"path": f"{domain}/{i}.png", "domain": domain, "license": "CC0", **digest})
    found[0]["caption"] = "a ramp"
    return found


def write(folder: Path, entries: Any, suffix: str = ".json") -> Path:
    path = folder / f"manifest{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(entries))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n\n")
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            rows = csv.DictWriter(file, ["path", "domain", "license", "sha256", "md5", "caption"])
            rows.writeheader()
            rows.writerows(entries)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_manifests_of_every_form_say_the_same(tmp_path: Path, entries: list[Entry], suffix: str) -> None:
    found = read_manifest(write(tmp_path, entries, suffix))
    assert found == [
        Source(str(tmp_path / "faces/0.png"), f"sha256:{entries[0]['sha256'].lower()}", "faces", "a ramp"),
        Source(str(tmp_path / "aerial/1.png"), f"md5:{entries[1]['md5']}", "aerial"),
    ]
    assert torch.equal(load(found, 32)[1], truth())


def test_a_manifest_may_wrap_its_list(tmp_path: Path, entries: list[Entry]) -> None:
    assert len(read_manifest(write(tmp_path, {"images": entries}))) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "faces/none.png"}, "'faces/none.png' is no file: restore"),
        ({"path": "../outside.png"}, "must be relative and without"),
        ({"path": "/etc/hostname"}, "must be relative and without"),
        ({"path": "link.png"}, "leads outside the manifest's folder"),
        ({"path": ""}, "has no path: fill it in"),
        ({"path": "a\0b"}, "is no file"),
        ({"path": "x" * 5000}, "is no file"),
        ({"path": "faces"}, "is no file"),
        ({"domain": " "}, "has no domain: fill it in"),
        ({"license": ""}, "has no license: fill it in"),
        ({"license": None}, "has no license: fill it in"),
        ({"md5": "0" * 32}, "has another md5"),
        ({"md5": ""}, "has no sha256 and no md5: add one"),
        ({"md5": 7}, "has a md5 that is no text"),
        ({"path": "faces/0.png"}, "is listed twice: remove one"),
        ({"path": "./faces/0.png"}, "is listed twice: remove one"),
    ],
)
def test_every_fault_of_a_manifest_is_named(tmp_path: Path, entries: list[Entry], change: Entry, words: str) -> None:
    outside = save(tmp_path.parent / f"{tmp_path.name}-outside.png", RAMP)
    (tmp_path / "link.png").symlink_to(outside)
    with pytest.raises(UserError, match=words) as caught:
        read_manifest(write(tmp_path, [entries[0], {**entries[1], **change}]))
    assert str(caught.value).startswith("manifest.json, entry 2: ")
    assert "\n" not in str(caught.value)


def test_all_faults_are_told_at_once_up_to_ten(tmp_path: Path, entries: list[Entry]) -> None:
    lines = []
    for count in (3, 25):
        bad = [{**entries[0], "license": ""}] * count
        with pytest.raises(UserError) as caught:
            read_manifest(write(tmp_path, [*bad, entries[1]], ".jsonl"))
        lines.append(str(caught.value).splitlines())
    assert [len(part) for part in lines] == [3, 11]
    assert lines[0][2].startswith("manifest.jsonl, line 3: ")
    assert lines[1][10] == "and 15 more"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.json", "{", "does not parse"),
        ("m.json", "7", "must hold a list"),
        ("m.json", "[]", "lists no image"),
        ("m.json", "[3]", "entry 1: is no object"),
        ("m.jsonl", '{"path": 1}', "has no path"),
        ("m.csv", 'path,domain\n"a', "does not parse"),
        ("m.txt", "", r"must end in \.json"),
        ("m.json", b"\xff\xfe\xff", "does not parse"),
    ],
)
def test_files_that_are_no_manifest(tmp_path: Path, name: str, text: str | bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words):
        read_manifest(path)


def test_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        read_manifest(tmp_path / "none.json")


def test_farthest_points_spread_over_clusters() -> None:
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])
    features = np.repeat(centres, 25, axis=0) + np.random.default_rng(0).normal(0, 0.1, (100, 2))
    for seed in range(5):
        chosen = farthest_points(features, 4, seed)
        assert {i // 25 for i in chosen} == {0, 1, 2, 3}
        assert chosen == farthest_points(features, 4, seed)
    assert len({tuple(farthest_points(features, 4, seed)) for seed in range(5)}) > 1


def test_farthest_points_take_no_point_twice() -> None:
    assert sorted(farthest_points(np.ones((6, 3)), 6, 0)) == list(range(6))
    assert farthest_points(np.ones((6, 3)), 0, 0) == []
    for features, k in ((np.ones((3, 2)), 4), (np.ones(3), 1), (np.full((3, 2), np.nan), 1)):
        with pytest.raises(ValueError, match="give finite"):
            farthest_points(features, k, 0)


def test_stratified_takes_the_same_number_from_each_domain() -> None:
    sources = [Source(f"{i}", "sha256:0", "abc"[i % 3]) for i in range(30)]
    features = np.arange(30)[:, None]
    for given in (None, features):
        chosen = stratified(sources, 4, given, 1)
        assert [s.domain for s in chosen].count("b") == 4
        assert len(set(chosen)) == 12
        assert chosen == sorted(chosen, key=lambda s: int(s.path))
        assert chosen == stratified(sources, 4, given, 1)
    assert stratified(sources, 4, None, 1) != stratified(sources, 4, None, 2)
    ends = {int(s.path) // 3 for s in stratified(sources, 4, features, 0)}
    assert {0, 9} <= ends
    with pytest.raises(UserError, match="'a' has 10 images, not 11"):
        stratified(sources, 11, None, 0)


def test_all_the_faults_of_a_folder_come_in_one_line(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"a\.png is no image.*; .*b\.jpg is no image") as caught:
        find(tmp_path)
    assert "\n" not in str(caught.value)
