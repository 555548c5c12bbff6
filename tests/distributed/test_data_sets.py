"""From the published archives, a web server or an event camera to a trained network, by the commands that a user gives."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.formats.sample import RawSample
from tests.conftest import StripesSource, stored, write_config
from tests.distributed.starter import tdformer
from tests.distributed.test_bad_input import assert_one_sentence
from tests.runs import bits
from tests.unit.imagenet import plant_imagenet

pytestmark = pytest.mark.slow


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server: its address, and the folder that it serves."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


@pytest.mark.ffcv
def test_imagenet_from_its_archives_in_both_formats(run_config: dict, tmp_path: Path) -> None:
    planted = plant_imagenet(tmp_path / "archives", per_class=4)
    runs = []
    for format, options in (("wds", []), ("ffcv", ["--mode", "jpg", "--max-side", 64])):
        out = tmp_path / format
        planned = tdformer("data", "prepare", tmp_path / "archives", out, "--format", format, *options, "--dry-run", "--json")
        assert [row["state"] for row in json.loads(planned.stdout)["data_sets"]] == ["would be written"] * 2
        assert not out.exists()
        written = tdformer("data", "prepare", tmp_path / "archives", out, "--format", format, *options, "--json")
        rows = json.loads(written.stdout)["data_sets"]
        assert [(row["data_set"], row["samples"], row["classes"]) for row in rows] == [
            (str(out / "train"), len(planned_split), 3) for planned_split in (planted.train,)
        ] + [(str(out / "val"), len(planted.val), 3)]
        for split in ("train", "val"):
            assert tdformer("data", "verify", out / split, "--hashes", "--all-images").returncode == 0
        run_config["data"] |= {"train": str(out / "train"), "val": str(out / "val")}
        run_config["training"] |= {"epochs": 1, "global_batch": 4, "micro_batch": 2}
        run = tmp_path / f"run-{format}"
        result = tdformer("train", write_config(run_config, tmp_path), "--run-dir", run, "--processes", 2)
        assert result.returncode == 0, result.stderr
        runs.append(run)
    assert all((run / "checkpoints" / "step-00000003" / "manifest.json").exists() for run in runs)


def test_training_from_a_url_gives_the_bits_of_local_training(run_config: dict, tmp_path: Path, web: tuple[str, Path]) -> None:
    address, folder = web
    for split, samples in (("train", 26), ("val", 11)):
        stored(StripesSource(samples, seed=samples), folder / split)
    run_config["training"]["epochs"] = 1
    run_config["data"] |= {"shuffle": "blocks", "shuffle_window": 2, "workers": 1, "shard_cache": str(tmp_path / "cache")}
    for name, origin in (("local", folder), ("remote", address)):
        run_config["data"] |= {"train": f"{origin}/train", "val": f"{origin}/val"}
        result = tdformer("train", write_config(run_config, tmp_path), "--run-dir", tmp_path / name, "--processes", 2)
        assert result.returncode == 0, result.stderr
    assert bits(tmp_path / "local", 3) == bits(tmp_path / "remote", 3)

    run_config["data"]["shard_cache_gb"] = 1e-5
    refused = tdformer("train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "refused", "--processes", 2)
    assert_one_sentence(refused, "a shard cache of 10000 bytes is too small")
    (folder / "train" / "shard-000000.tar").unlink()
    run_config["data"] |= {"shard_cache": str(tmp_path / "empty-cache"), "shard_cache_gb": 1.0}
    broken = tdformer("train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "broken", "--processes", 2)
    assert_one_sentence(broken, f"{address}/train/shard-000000.tar was not found")


@pytest.mark.parametrize("location", ["pipe:cat data/train", "s3://key:secret@bucket/train", "simplecache::http://host/train"])
def test_locations_that_execute_or_leak_are_refused(run_config: dict, tmp_path: Path, location: str) -> None:
    run_config["data"]["train"] = location
    result = tdformer("train", write_config(run_config, tmp_path), "--processes", 2)
    assert result.returncode == 2
    assert "data.train: data location" in result.stderr
    assert "is refused" in result.stderr
    assert "secret" not in result.stderr
    assert "Traceback" not in result.stderr


class EventsSource:
    """Generated events: frames [4, 2, 32, 32] of three classes, which differ in where the events are."""

    classes = ("left", "middle", "right")
    ignored_files = 0
    left_out = ()

    def __len__(self) -> int:
        return 14

    def fingerprint(self) -> str:
        return "events"

    def origin(self, index: int) -> str:
        return f"event {index}"

    def __getitem__(self, index: int) -> RawSample:
        frames = np.zeros((4, 2, 32, 32), np.uint8 if index % 2 else np.uint16)
        label = index % 3
        frames[..., 10 * label : 10 * label + 10] = np.random.default_rng(index).integers(0, 9, (4, 2, 32, 10))
        npy = io.BytesIO()
        np.save(npy, frames)
        return RawSample(f"event-{index}", "npy", npy.getvalue(), label)


def test_training_on_event_frames(run_config: dict, tmp_path: Path) -> None:
    stored(EventsSource(), tmp_path / "events")
    run_config["data"] |= {"train": str(tmp_path / "events"), "val": str(tmp_path / "events"), "workers": 1}
    run_config["training"]["epochs"] = 1
    run_config["model"]["time_steps"] = 4
    refused = tdformer("train", write_config(run_config, tmp_path))
    assert_one_sentence(refused, "event frames [T, 2, H, W] of [4, 2, 32, 32]", "asks for [4, 3, 32, 32]", "model.backbone.in_channels")
    run_config["model"]["backbone"]["in_channels"] = 2
    refused = tdformer("train", write_config(run_config, tmp_path))
    assert_one_sentence(refused, "data.augment.crop_scale", "event frames are augmented by flip, events, mixup and cutmix")
    run_config["data"]["augment"] = {"crop_scale": None, "events": True, "mixup": 0.5, "mix_probability": 0.5}
    config = write_config(run_config, tmp_path)
    result = tdformer("train", config, "--run-dir", tmp_path / "run", "--processes", 2)
    assert result.returncode == 0, result.stderr
    assert "14 images" in result.stdout


def test_a_suite_of_data_sets_is_evaluated_each_by_itself(run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["epochs"] = 1
    run = tmp_path / "run"
    assert tdformer("train", write_config(run_config, tmp_path), "--run-dir", run).returncode == 0
    for number, name in enumerate(("fog-1", "fog-2")):
        stored(StripesSource(7 + number, seed=number), tmp_path / "suite" / name)
    whole = json.loads(tdformer("evaluate", run, "--suite", tmp_path / "suite", "--processes", 2, "--json").stdout)
    assert [(row["data_set"], row["samples"]) for row in whole["data_sets"]] == [("fog-1", 7), ("fog-2", 8)]
    for row in whole["data_sets"]:
        alone = json.loads(tdformer("evaluate", run, f"data.val={tmp_path}/suite/{row['data_set']}", "--json").stdout)
        assert (alone["top1"], alone["samples"]) == (row["top1"], row["samples"])
    assert whole["mean_top1"] == sum(row["top1"] for row in whole["data_sets"]) / 2
    table = tdformer("evaluate", run, "--suite", tmp_path / "suite").stdout
    assert "fog-2" in table
    assert "mean top1" in table
    (tmp_path / "nothing").mkdir()
    assert_one_sentence(tdformer("evaluate", run, "--suite", tmp_path / "nothing"), "holds no data set", "tdformer data prepare")
