"""`tdformer bench scaling`: its rows on emulated nodes, what it refuses, and what it keeps. No speed is asserted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from data_pipelines.errors import UserError
from tdformer.bench.emulated_accelerator import EmulatedAccelerator
from tdformer.bench.scaling_names import CANDIDATES
from tdformer.bench.scaling_picture import keep
from tdformer.training.model_with_loss import ModelWithLoss
from tests.conftest import tdformer
from tests.unit.networks import images, lively, small

FEW = ("ddp", "exact-2", "fast-2")
TINY = ["--embed-dims", 64, "--rounds", 1, *(part for name in FEW for part in ("--model", name))]


@pytest.mark.namespaces
@pytest.mark.slow
def test_two_emulated_nodes_send_what_their_reductions_need(tmp_path: Path) -> None:
    """A ring of two sends each byte of a sum once in each of two rounds: each byte of a mean in one."""
    before = namespaces()
    result = tdformer("bench", "scaling", "--emulate-nodes", 2, "--mbit-per-s", 400, *TINY, "--out", tmp_path, "--json", timeout=300)
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout)["results"]
    rows = {row["candidate"]: row for row in found["rows"]}
    assert tuple(rows) == ("alone", *FEW)
    for row in rows.values():
        assert (row["nodes"], row["ranks"]) == (2, 2)
        assert row["images_per_s"] == pytest.approx(row["ranks"] * row["micro_batch"] / row["seconds_per_step"])
    sent = {name: row["sent_bytes_per_parameter"] for name, row in rows.items()}
    assert sent["alone"] < 0.5
    assert 4 <= sent["ddp"] < 6
    assert 4.5 <= sent["exact-2"] < 7.5, "half of the gradients, a quarter of their means, and half of the parameters"
    assert 3.5 <= sent["fast-2"] < 6.5, "half of the gradients, and half of the parameters"
    assert json.loads((tmp_path / "scaling.json").read_text())["results"] == [found]
    assert (tmp_path / "scaling.svg").read_text().startswith("<svg xmlns=")
    assert namespaces() == before


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "horovod"], "--model horovod: the candidates are alone, ddp, deepspeed-1"),
        (["--emulate-nodes", "two"], "--emulate-nodes takes numbers from 1 to 64"),
        (["--emulate-nodes", "0"], "--emulate-nodes takes numbers from 1 to 64"),
        (["--embed-dims", "100"], "--embed-dims must be a multiple of 64"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(options: list[str], sentence: str) -> None:
    result = tdformer("bench", "scaling", *options)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.stderr


def result_of(ranks: int, **conditions: object) -> dict:
    rows = [{"candidate": name, "ranks": ranks, "added_s": 0.1 * place} for place, name in enumerate(CANDIDATES)]
    return {"conditions": {"device": "x", "scaling": "weak", **conditions}, "rows": rows}


def test_results_of_other_numbers_of_ranks_are_kept_beside_each_other(tmp_path: Path) -> None:
    keep([result_of(4)], tmp_path)
    keep([result_of(2)], tmp_path)
    again = result_of(4, commit="newer")
    keep([again], tmp_path)
    assert json.loads((tmp_path / "scaling.json").read_text())["results"] == [result_of(2), again]
    picture = (tmp_path / "scaling.svg").read_text()
    assert all(f">{name}<" in picture for name in CANDIDATES if name != "alone")


def test_results_of_another_setting_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    keep([result_of(2, mbit_per_s=100)], tmp_path)
    before = (tmp_path / "scaling.json").read_bytes()
    with pytest.raises(UserError, match="results with another mbit per s; choose another --out"):
        keep([result_of(4, mbit_per_s=200)], tmp_path)
    assert (tmp_path / "scaling.json").read_bytes() == before
    (tmp_path / "scaling.json").write_text("[]")
    with pytest.raises(UserError, match="holds no results of tdformer bench scaling"):
        keep([result_of(2)], tmp_path)


def test_an_emulated_accelerator_takes_its_time_after_parts_and_where_gradients_come_into_being(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass of the last segment completes no gradient, because the first one shares its weights."""
    slept: list[float] = []
    monkeypatch.setattr("tdformer.bench.emulated_accelerator.time.sleep", slept.append)
    monkeypatch.setattr("tdformer.bench.emulated_accelerator.time.perf_counter", lambda: sum(slept))
    model_with_loss = lively(ModelWithLoss(small(), 0.1))
    blocks = len(model_with_loss.model.backbone.bottom_up()[1:]) + len(model_with_loss.model.backbone.transform())
    EmulatedAccelerator(model_with_loss, forward_s=10, backward_s=20)
    loss = model_with_loss(images(2), torch.tensor([0, 1]))
    assert sum(slept) == pytest.approx(10, abs=0.02)
    assert len(slept) >= blocks, "in the forward pass of each segment, after each part"
    forward = len(slept)
    loss.backward()
    assert sum(slept) == pytest.approx(30, abs=0.02)
    assert slept[forward] == pytest.approx(10, abs=0.02)
    assert len(slept) > forward + blocks
    with torch.no_grad():
        model_with_loss(images(2), torch.tensor([0, 1]))
