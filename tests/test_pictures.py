"""The pictures of docs/schedules: every schedule has one, and it shows what the schedule does now."""

from __future__ import annotations

import html
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from support import first_party

DOCS = Path(__file__).parent.parent / "docs"
NAMES = first_party("scheduler")


def module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pictures = module_of(DOCS / "pictures.py")
ENTRIES = pictures.entries()


def test_every_schedule_has_a_picture() -> None:
    assert sorted(ENTRIES) == NAMES, "the entries of docs/pictures.yaml"
    assert sorted(path.name for path in (DOCS / "schedules").iterdir()) == [f"{name}.svg" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_picture_shows_what_the_schedule_does(name: str, tmp_path: Path) -> None:
    committed = (DOCS / "schedules" / f"{name}.svg").read_text()
    drawn = pictures.write(name, ENTRIES[name], tmp_path).read_text()
    data, new_data = (json.loads(html.unescape(found)) for found in map(description_of, (committed, drawn)))
    assert data.keys() == new_data.keys(), "run: make pictures"
    for label, lrs in data.items():
        assert lrs == pytest.approx(new_data[label], rel=1e-5, abs=1e-12), f"{label}: run: make pictures"
    if version_of(committed) == version_of(drawn):
        assert committed == drawn, "run: make pictures"


def description_of(svg: str) -> str:
    (found,) = re.findall(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
    return found


def version_of(svg: str) -> str:
    (found,) = re.findall(r"<dc:title>(Matplotlib v[\d.]+),", svg)
    return found


@pytest.mark.parametrize("name", ENTRIES)
def test_picture_has_two_or_three_settings(name: str) -> None:
    assert len(ENTRIES[name]["settings"]) in (2, 3)


@pytest.mark.parametrize("path", sorted((DOCS / "schedules").iterdir()), ids=lambda path: path.stem)
def test_picture_is_a_small_svg_with_text_and_without_a_date(path: Path) -> None:
    svg = path.read_text()
    assert path.stat().st_size < 40_000
    assert "<dc:date>" not in svg
    assert f">{path.stem}<" in svg  # the title is text
    assert ">learning rate<" in svg
    assert ">optimizer steps<" in svg
