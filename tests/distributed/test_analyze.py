"""`tdformer analyze` on real runs: parts, baseline, resumption, weights folders, several processes, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from mlflow import MlflowClient

from data_pipelines.errors import UserError
from data_pipelines.storage.sealed_json import read_sealed, write_sealed
from tdformer.analysis.baseline import check_comparable
from tdformer.inference.networks import load_network
from tdformer.rundir.run_dir import RunDir
from tdformer.tracking.run_ids import read_run_id
from tests.distributed.starter import tdformer
from tests.distributed.test_bad_input import assert_one_sentence
from tests.runs import ReferenceRun, finished, train
from tests.stripes import StripesSource, stored
from tests.unit.browser import page as browser_page

pytestmark = pytest.mark.slow

PARTS = ["topdown_use", "mutual_information", "time_gradients", "surrogates", "attention_maps", "energy"]
FEW = ("--samples", 100)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 100 samples, which suffice for every estimator."""
    return stored(StripesSource(100, seed=3), tmp_path_factory.mktemp("sets") / "val")


@pytest.fixture(scope="module")
def plain(reference: ReferenceRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the reference run's backbone, without feedback."""
    folder = tmp_path_factory.mktemp("plain")
    config = reference.config(folder, epochs=1)
    config["model"]["feedback"] = None
    return train(config, folder)


def analysis_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "analysis.json").read_text())


def without_names(value: Any) -> Any:
    """A value with its numbers rounded to what sums in another order have in common."""
    if isinstance(value, dict):
        return {name: without_names(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_names(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def test_all_parts_with_a_baseline_on_one_process_and_on_two(reference: ReferenceRun, plain: Path, larger: Path, tmp_path: Path) -> None:
    options = (reference.run, "--baseline", plain, "--data", larger, *FEW)
    one = finished("analyze", *options, "--out", tmp_path / "one")
    assert f"report    {tmp_path / 'one' / 'report.html'}" in one.stdout
    finished("analyze", *options, "--out", tmp_path / "two", "--processes", 2)
    first, second = analysis_of(tmp_path / "one"), analysis_of(tmp_path / "two")
    assert list(first["parts"]) == PARTS
    assert first["data"]["samples"] == 100
    for part in ("mutual_information", "time_gradients", "energy", "attention_maps"):
        assert set(first["parts"][part]) >= {"network", "baseline"}, part
    assert set(first["parts"]["mutual_information"]["difference"]) == {"stage1", "stage2", "stage3"}
    for part in ("time_gradients", "surrogates", "energy", "attention_maps", "mutual_information", "topdown_use"):
        assert without_names(second["parts"][part]) == without_names(first["parts"][part]), part
    page = (tmp_path / "one" / "report.html").read_text()
    for title in ("Is the top-down path used?", "Mutual information across time steps", "Gradients along time", "Attention maps", "Energy"):
        assert f"<h2>{title}</h2>" in page
    asyncio.run(look_at(tmp_path / "one" / "report.html"))
    figures = {path.stem: ElementTree.parse(path).getroot() for path in (tmp_path / "one" / "figures").iterdir()}
    assert {"attention-maps", "stage3-features-nearest-neighbours-this-network", "stage1-norm-of-dl-dh-t-per-image"} <= set(figures), (
        figures
    )
    assert {root.tag for root in figures.values()} == {"{http://www.w3.org/2000/svg}svg"}
    assert "var(" not in (tmp_path / "one" / "figures" / "attention-maps.svg").read_text(), "converters know no variables"


async def look_at(report: Path) -> None:
    """A browser shows all of the page, asks for nothing outside, and has no complaint."""
    async with browser_page() as shown:
        await shown.open(report)
        assert (await shown.value("document.title")).startswith("Analysis of run step-")
        seen = "[...document.images].map(image => image.naturalWidth)"
        assert set(await shown.value(seen)) == {32}
        assert await shown.value("document.querySelectorAll('svg.map').length") > 0
        assert await shown.value("document.body.scrollWidth <= window.innerWidth")
        assert shown.complaints == []
        assert [url for url in shown.requests if not url.startswith(("file:", "data:"))] == []


def test_parts_that_are_done_are_kept(reference: ReferenceRun, tmp_path: Path) -> None:
    only = ("--only", "energy", "--only", "time_gradients")
    finished("analyze", reference.run, "--only", "energy", "--out", tmp_path)
    done = read_sealed(tmp_path / "analysis.json")
    done["parts"]["energy"]["network"]["paper_mj"] = 42.0
    write_sealed(tmp_path / "analysis.json", done)
    told = finished("analyze", reference.run, *only, "--out", tmp_path, "--json")
    assert json.loads(told.stdout) == read_sealed(tmp_path / "analysis.json")
    assert analysis_of(tmp_path)["parts"]["energy"]["network"]["paper_mj"] == 42.0
    assert list(analysis_of(tmp_path)["parts"]) == ["energy", "time_gradients"]
    assert_one_sentence(
        tdformer("analyze", reference.run, "--samples", 5, "--only", "energy", "--out", tmp_path),
        "is of another network, baseline, data set, suite or number of samples",
    )


def test_there_may_be_fewer_samples_than_processes(reference: ReferenceRun, tmp_path: Path) -> None:
    parts = ("topdown_use", "time_gradients", "surrogates", "energy")
    only = [text for part in parts for text in ("--only", part)]
    finished("analyze", reference.run, "--samples", 1, *only, "--out", tmp_path, "--processes", 2)
    assert tuple(analysis_of(tmp_path)["parts"]) == parts
    answers = analysis_of(tmp_path)["parts"]["topdown_use"]["network"]["answers"]
    assert "of another image" not in answers, "there is none"


def test_results_are_sent_to_the_mlflow_run(reference: ReferenceRun, tmp_path: Path) -> None:
    run = reference.copy_cut_after(8, tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert_one_sentence(tdformer("analyze", run, "--only", "energy", "--out", tmp_path / "out", "--log"), "tdformer runs sync")
    finished("runs", "sync", run)
    finished("analyze", run, "--only", "energy", "--out", tmp_path / "out", "--log")
    artifacts = MlflowClient(uri).list_artifacts(read_run_id(RunDir(run), uri), "analysis")
    assert {artifact.path for artifact in artifacts} == {"analysis/analysis.json", "analysis/report.html"}


def test_an_exported_network_gives_the_numbers_of_its_run(reference: ReferenceRun, tmp_path: Path) -> None:
    finished("checkpoint", "export", reference.run, tmp_path / "weights")
    finished("analyze", reference.run, "--only", "energy", "--out", tmp_path / "run")
    finished("analyze", tmp_path / "weights", "--data", reference.folder / "val", "--only", "energy", "--out", tmp_path / "exported")
    assert without_names(analysis_of(tmp_path / "exported")["parts"]) == without_names(analysis_of(tmp_path / "run")["parts"])


def test_what_cannot_be_analysed_is_told_in_a_sentence(reference: ReferenceRun, plain: Path, tmp_path: Path) -> None:
    finished("checkpoint", "export", reference.run, tmp_path / "weights")
    renamed = StripesSource(12, seed=1)
    renamed.classes = ("x", "y", "z")
    other_classes = stored(renamed, tmp_path / "other")
    for arguments, words in (
        ((plain, "--only", "topdown_use"), "has no part topdown_use: it has no top-down path"),
        ((reference.run, "--only", "nonsense"), "there is no such part; the parts are topdown_use, "),
        ((reference.run,), "mutual information needs at least 100 samples, got 11; raise --samples"),
        ((reference.run, "--data", tmp_path / "nowhere"), "does not exist"),
        ((reference.run, "--image", "nobody"), "has no sample with key nobody; its first one is"),
        ((reference.run, "--suite", tmp_path / "nowhere"), "holds no data set"),
        ((reference.run, "--data", other_classes), "names other classes than"),
        ((tmp_path / "weights",), "does not say where the validation set is; name one with --data"),
        ((tmp_path / "nowhere",), "holds no latest checkpoint"),
        ((tmp_path / "weights", "--data", reference.folder / "val", "--log"), "is of no run here"),
        ((reference.run, "--baseline", tmp_path / "nowhere"), "holds no latest checkpoint"),
    ):
        assert_one_sentence(tdformer("analyze", *arguments, "--out", tmp_path / "out"), words)
    (tmp_path / "file").write_text("mine")
    assert_one_sentence(tdformer("analyze", reference.run, "--only", "energy", "--out", tmp_path / "file"), "--out")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_baseline_must_have_the_same_images_and_time_steps(reference: ReferenceRun, tmp_path: Path) -> None:
    config = reference.config(tmp_path, epochs=1)
    config["model"] |= {"time_steps": 4, "feedback": None}
    other = train(config, tmp_path)
    told = tdformer("analyze", reference.run, "--baseline", other, "--out", tmp_path / "out")
    assert_one_sentence(told, "has a number of time steps of 4", "has 2; give a baseline that has the same")


def test_a_baseline_of_other_samples_is_refused_or_told(reference: ReferenceRun) -> None:
    network = load_network(reference.run)
    assert network.trained_on is not None
    count, digest = network.trained_on
    with pytest.raises(UserError, match=r"has a training set of 7 samples, and .* has 50 samples; give a baseline that has the same"):
        check_comparable(network, replace(network, trained_on=(7, digest)))
    assert check_comparable(network, replace(network, trained_on=(count, "another")))[0].endswith("or on the same ones in another order")
    assert check_comparable(network, replace(network, trained_on=None)) == check_comparable(network, network) == []
