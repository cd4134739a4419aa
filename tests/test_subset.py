"""The small, stratified, diverse subset: as many of each domain, spread out, and a manifest that verifies."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diffprobe.errors import UserError
from diffprobe.images import digest, read_manifest
from diffprobe.subset import write_subset

COLOURS = ("red", "darkred", "blue", "lime", "white", "black")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for domain in ("faces", "art"):
        (tmp_path / domain).mkdir()
        for i, colour in enumerate(COLOURS):
            Image.new("RGB", (32, 32), colour).save(tmp_path / domain / f"{i}.png")
    return tmp_path


def test_a_subset_has_as_many_of_each_domain_and_verifies(folder: Path) -> None:
    assert write_subset(str(folder), 3, "embedded", 0, folder / "subset.json") == 6
    found = read_manifest(folder / "subset.json")
    assert sorted(source.domain for source in found) == ["art"] * 3 + ["faces"] * 3
    assert {json.dumps(entry["license"]) for entry in json.loads((folder / "subset.json").read_text())} == {'"not stated"'}


def test_a_subset_of_a_manifest_keeps_its_licences(folder: Path) -> None:
    entries = [
        {"path": f"art/{i}.png", "domain": "art", "license": f"CC{i}", "md5": digest(folder / f"art/{i}.png", "md5").removeprefix("md5:")}
        for i in range(4)
    ]
    (folder / "all.json").write_text(json.dumps(entries))
    write_subset(str(folder / "all.json"), 2, "embedded", 0, folder / "subset.json")
    written = json.loads((folder / "subset.json").read_text())
    assert all(entry["license"] == f"CC{entry['path'][4]}" and "md5" in entry for entry in written)


def test_twins_are_not_chosen_before_what_is_different(tmp_path: Path) -> None:
    for i, colour in enumerate(("red", "red", "red", "lime", "black")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{i}.png")
    write_subset(str(tmp_path), 3, "embedded", 0, tmp_path / "subset.json")
    chosen = {Path(source.path).name for source in read_manifest(tmp_path / "subset.json")}
    assert {"3.png", "4.png"} < chosen


def test_what_cannot_be_chosen_is_one_line(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match="has 6 images, not 7"):
        write_subset(str(folder), 7, "embedded", 0, folder / "subset.json")
    with pytest.raises(UserError, match="write the manifest"):
        write_subset(str(folder), 2, "embedded", 0, tmp_path_factory.mktemp("elsewhere") / "subset.json")
    with pytest.raises(UserError, match="need no subset"):
        write_subset("world", 2, "embedded", 0, folder / "subset.json")
