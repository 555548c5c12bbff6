"""Tests the report of `tdformer runs compare`: it is one file, requests nothing, runs no foreign code, and a real browser shows it."""

from __future__ import annotations

import asyncio
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import UserError
from tdformer.pages import svg_charts
from tdformer.runs import formatting, reader
from tdformer.runs.comparison import Comparison, compare
from tdformer.runs.discovery import find_runs
from tdformer.runs.report import figures, html_report
from tests.unit.browser import page
from tests.unit.generated_runs import BEGAN, write_run

EVIL = "<script>alert(1)<script>"
EVIL_IMAGE = '"><img src=x onerror=alert(2)>'


class Structure(HTMLParser):
    """A parser that collects the tags with their attributes, and the texts."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def three_settings(folder: Path, **of_all: Any) -> Comparison:
    """Write two runs with different seeds for each of three learning rates, and compare all six."""
    for number, rate in enumerate((1e-4, 2e-4, 3e-4)):
        for seed in (0, 1):
            top1 = [60.0 + number, 70 + 2 * number + seed, 71 + 2 * number + seed]
            data = {"train": "data/imagenet/train"}
            session = {"seen": BEGAN + 3600 * (1 + number)}
            config = {"seed": seed, "optimizer": {"base_lr": rate}, "data": data, "training": {"epochs": 3}, **of_all}
            write_run(folder / f"run-{number}-{seed}", top1=top1, config=config, sessions=[session])
    return compare(reader.read_all(find_runs([folder])))


def test_it_is_whole_and_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    structure = Structure(html_report.render(three_settings(tmp_path)))
    assert structure.open == []
    assert (structure.count("script"), structure.count("style")) == (1, 1)
    for tag, attributes in structure.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "image", "use", "a")
        for name, value in attributes.items():
            assert name not in ("src", "href", "xlink:href", "style", "action", "srcset"), (tag, name)
            assert not name.startswith("on"), (tag, name)
            assert "//" not in (value or ""), (tag, name, value)
    assert structure.count("svg") >= 3


def test_it_holds_the_numbers(tmp_path: Path) -> None:
    comparison = three_settings(tmp_path)
    texts = " ".join(Structure(html_report.render(comparison)).texts)
    paper = ("arXiv 2505.15840, table 1", "85.57")
    for expected in ("75.50 ± 0.71", "73.50 ± 0.71", "2.00 behind", "seeds 0, 1", "run-2-1", "base_lr", "24.00 GPU hours", *paper):
        assert expected in texts
    text = html_report.render(compare([reader.read(write_run(tmp_path / "other" / "one"))]))
    assert "No setting was run with several seeds" not in text
    assert "arXiv" not in text


@pytest.mark.parametrize("evil", [EVIL, EVIL_IMAGE, "</style><b>", "{{ 7 * 7 }}", "& < > ' \""])
def test_names_and_configurations_are_text(tmp_path: Path, evil: str) -> None:
    plain = Structure(html_report.render(three_settings(tmp_path / "plain"))).tags
    comparison = three_settings(tmp_path / "runs", init=evil.replace("/", "|"))
    (tmp_path / "runs" / "run-0-0").rename(tmp_path / "runs" / evil.replace("/", "|"))
    (tmp_path / "runs" / evil.replace("/", "|") / "config.yaml").write_text(f"- {EVIL}")
    comparison = compare(reader.read_all(find_runs([tmp_path / "runs"])))
    structure = Structure(html_report.render(comparison))
    assert evil.replace("/", "|") in " ".join(structure.texts)
    assert {tag for tag, _ in structure.tags} <= {tag for tag, _ in plain} | {"code"}
    assert structure.count("script") == 1


def test_a_file_that_is_no_report_is_not_replaced(tmp_path: Path) -> None:
    comparison = three_settings(tmp_path / "runs")
    path = tmp_path / "new" / "report.html"
    html_report.write(path, comparison, force=False)
    html_report.write(path, comparison, force=False)  # A report may replace a report.
    path.write_text("my thesis")
    with pytest.raises(UserError, match="is no report of this command"):
        html_report.write(path, comparison, force=False)
    assert path.read_text() == "my thesis"
    html_report.write(path, comparison, force=True)
    assert path.read_text().startswith("<!doctype html>")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_runs_without_numbers_make_a_report_too(tmp_path: Path) -> None:
    new = write_run(tmp_path / "new", sessions=[])
    (new / "metrics.jsonl").unlink()
    assert Structure(html_report.render(compare([reader.read(new)]))).open == []
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.jsonl").write_text("")
    assert Structure(html_report.render(compare(reader.read_all(find_runs([tmp_path]))))).open == []
    flat = write_run(tmp_path / "flat", top1=[float("nan"), float("nan")])
    assert Structure(html_report.render(compare([reader.read(flat)]))).open == []


def test_ticks_are_round_and_within() -> None:
    for low, high in ((0, 1), (84.1, 85.3), (-3, 1e6), (1e-9, 2e-9), (5, 5)):
        scale = svg_charts.scale([low, high], 0, 100)
        assert 2 <= len(scale.ticks) <= 11
        assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in scale.ticks)


def test_the_mean_of_curves_is_over_what_all_have() -> None:
    assert figures.mean_curve([[(1, 10), (2, 20), (3, 30)], [(2, 40), (3, 50)]]) == [(2, 30), (3, 40)]
    assert figures.mean_curve([[(0, 0), (1, 2), (2, 4)], [(0, 0), (2, 2)]]) == [(0, 0), (1, 1.5), (2, 3)]


def test_tags_and_sparklines() -> None:
    assert [formatting.tag(index) for index in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]
    assert formatting.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert formatting.sparkline([1.0, float("nan"), 1.0]) == "▁ ▁"
    assert len(formatting.sparkline(list(range(1000)), 40)) == 40


@pytest.mark.slow
def test_a_browser_shows_it_without_a_complaint(tmp_path: Path) -> None:
    """The browser sorts the table, and runs nothing but the script of the report."""
    comparison = three_settings(tmp_path / "runs")
    (tmp_path / "runs" / "run-0-0").rename(tmp_path / "runs" / EVIL)
    (tmp_path / "runs" / "run-0-1").rename(tmp_path / "runs" / EVIL_IMAGE)
    comparison = compare(reader.read_all(find_runs([tmp_path / "runs"])))
    html_report.write(tmp_path / "report.html", comparison, force=False)
    names = "[...document.querySelectorAll('table')[2].tBodies[0].rows].map(row => row.cells[1].textContent.trim())"

    async def look() -> None:
        async with page() as shown:
            await shown.open(tmp_path / "report.html")
            assert await shown.value("document.title") == "Comparing 6 runs"
            by_rank = await shown.value(names)
            assert by_rank[0] == "run-2-1"
            await shown.value("[...document.querySelectorAll('th')].find(th => th.textContent === 'run').click()")
            by_name = await shown.value(names)
            assert [name for name in by_name if name.startswith("run")] == ["run-1-0", "run-1-1", "run-2-0", "run-2-1"]
            assert sorted(by_name) == sorted(by_rank)
            await shown.value("document.querySelector('tr[data-tag=B]').dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
            assert await shown.value("document.querySelectorAll('svg polyline.hot').length") > 0
            assert await shown.value("document.body.scrollWidth <= window.innerWidth")
            light, dark = [_pixels(await shown.screenshot(scheme, 1400, 1800)) for scheme in ("light", "dark")]
            assert light.shape == (1800, 1400, 3)
            assert light.mean() > 200 > 80 > dark.mean()
            for pixels in (light, dark):
                assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
                assert (pixels.std(axis=(1, 2)) > 0).mean() > 0.5  # Most lines of pixels are not empty.
            assert shown.complaints == []
            assert [url for url in shown.requests if not url.startswith("file:")] == []

    asyncio.run(look())


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)
