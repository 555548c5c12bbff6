"""Trouble that passes (a busy server, a lost mount, too many open files) is waited for, and is never taken for damage."""

from __future__ import annotations

import ast
import errno
import itertools
import json
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch

from data_pipelines.config import DataConfig
from data_pipelines.errors import DataError, UnavailableError
from data_pipelines.formats.index import Index
from data_pipelines.formats.manifest import MANIFEST
from data_pipelines.loading.batch import Batch
from data_pipelines.loading.dataloader import evaluation_batches, train_batches, train_sampler
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.index_shards import index_shards
from data_pipelines.prepare.options import PrepareOptions
from data_pipelines.prepare.prepare_dataset import prepare_dataset
from data_pipelines.prepare.shard_list import find_shards
from data_pipelines.prepare.verify_dataset import VerifyOptions, verify_dataset
from data_pipelines.processes import map_unordered
from data_pipelines.sources.folders import ImageFolderSource
from data_pipelines.sources.layouts import open_splits
from data_pipelines.sources.lists import ListSource
from data_pipelines.storage import patience as waiting
from data_pipelines.storage.backends import TransferError, seconds_to_wait
from data_pipelines.storage.cache_folder import CacheFolder
from data_pipelines.storage.passing_trouble import is_passing
from data_pipelines.storage.patience import NO_PATIENCE, Patience, patiently
from launch.exit_codes import EXIT_STOPPED
from tests.conftest import tdformer
from tests.distributed.starter import Started
from tests.unit.conftest import contents, no_file_is_opened, noise_png
from tests.unit.test_shard_cache import Server, cut_off, server, status, whole
from tests.unit.test_sources import PNG, plant, plant_tars, save_arrays

assert server  # a fixture


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(waiting, "LONGEST_PAUSE", 0.1)


def refusal(action: Callable[[], object], *mentions: object) -> str:
    """Check that an action raises an UnavailableError of one line that advises to remove nothing, and return its text."""
    with pytest.raises(UnavailableError) as caught:
        action()
    text = str(caught.value)
    assert [str(mention) for mention in mentions if str(mention) not in text] == []
    assert not any(word in text for word in ("remove", "mend", "prepare it again", "damaged in", "\n")), text
    return text


# --- what passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "at_first", "later"),
    [
        (errno.EIO, True, True),
        (errno.ESTALE, True, True),
        (errno.EMFILE, True, True),
        (errno.ENFILE, True, True),
        (errno.ETIMEDOUT, True, True),
        (errno.EHOSTDOWN, True, True),
        (errno.ENOTCONN, True, True),
        (errno.ENOMEM, True, True),
        (errno.ENOENT, False, True),
        (errno.EACCES, False, True),
        (errno.EISDIR, False, False),
        (errno.ENOTDIR, False, True),
        (errno.ELOOP, False, True),
        (errno.EINVAL, False, False),
        (errno.ENOSPC, False, False),
        (None, False, False),
    ],
)
def test_few_errors_of_the_system_say_anything_about_a_file(number: int | None, at_first: bool, later: bool) -> None:
    error = OSError("the image is cut off") if number is None else OSError(number, os.strerror(number))
    assert (is_passing(error), is_passing(error, was_there=True)) == (at_first, later)


def test_what_no_content_causes_passes_and_a_wrong_value_does_not() -> None:
    assert is_passing(MemoryError())
    assert is_passing(SystemError("AST constructor recursion depth mismatch (before=171, after=192)"))
    assert not is_passing(ValueError())


@pytest.mark.parametrize("error", [SystemError("AST constructor recursion depth mismatch"), MemoryError()])
def test_a_header_that_python_cannot_parse_now_is_not_called_damaged(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_arrays(tmp_path / "train.npz")
    save_arrays(tmp_path / "val.npz")
    index = Index.from_rows([(0, 0, 1, 2, "a")])
    index.save(tmp_path / "index.npy")

    def parse(header: object) -> object:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ast, "literal_eval", parse)
        with pytest.raises(UnavailableError, match=r"train\.npz cannot be read now"):
            open_splits(str(tmp_path), "arrays")
        with pytest.raises(UnavailableError, match=r"index\.npy cannot be read now"):
            Index.load(tmp_path / "index.npy")
    assert len(Index.load(tmp_path / "index.npy")) == 1
    assert len(open_splits(str(tmp_path), "arrays")["val"]) > 0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("17", 17), (" 0 ", 0), (None, 0), ("", 0), ("soon", 0), ("-3", 0), ("1e9", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after_is_read_in_seconds(header: str | None, seconds: float) -> None:
    assert seconds_to_wait(header) == seconds


def test_retry_after_is_read_as_a_date() -> None:
    assert 55 < seconds_to_wait(formatdate(time.time() + 60, usegmt=True)) <= 60


# --- patience ------------------------------------------------------------------------------------------------


class Failing:
    """An action that fails a number of times before it succeeds. It notes when it was called."""

    def __init__(self, failures: int, retry_after_s: float = 0.0) -> None:
        self.failures, self.retry_after_s = failures, retry_after_s
        self.calls: list[float] = []

    def __call__(self) -> str:
        self.calls.append(time.monotonic())
        if len(self.calls) <= self.failures:
            raise UnavailableError(f"failure {len(self.calls)}.", self.retry_after_s)
        return "done"


def test_an_action_is_tried_again_until_it_succeeds_and_one_line_says_so() -> None:
    action, lines, notes, signs = Failing(4), [], [], []
    patience = Patience(10.0, lines.append, notes.append, alive=lambda: signs.append(1))
    assert patiently(action, patience) == "done"
    assert len(action.calls) == 5
    assert lines == ["failure 1. Before that, this command tries again by itself for 10 seconds."]
    assert len(notes) == 1
    assert notes[0].startswith("what could not be read can be read again, after ")
    assert len(signs) >= 4, "the watchdog is told at every attempt"


def test_the_last_failure_is_raised_when_the_patience_is_over() -> None:
    action, began = Failing(10**6), time.monotonic()
    with pytest.raises(UnavailableError, match=r"failure [3-9]"):
        patiently(action, Patience(0.3, lambda text: None))
    assert 0.2 < time.monotonic() - began < 3


def test_without_patience_there_is_one_attempt_and_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    action = Failing(1)
    with pytest.raises(UnavailableError):
        patiently(action, NO_PATIENCE)
    assert len(action.calls) == 1
    assert capsys.readouterr().err == ""


def test_other_errors_are_not_waited_for() -> None:
    def damaged() -> None:
        raise DataError("damaged")

    with pytest.raises(DataError, match="damaged"):
        patiently(damaged, Patience(10.0))


def test_a_stop_ends_the_wait_at_once() -> None:
    stop, began = threading.Event(), time.monotonic()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(UnavailableError):
        patiently(Failing(10**6, retry_after_s=60), Patience(60.0, lambda text: None, should_stop=stop.is_set))
    assert time.monotonic() - began < 2


def test_a_server_decides_how_long_it_is_left_alone_within_the_patience() -> None:
    action = Failing(1, retry_after_s=0.5)
    patiently(action, Patience(10.0, lambda text: None))
    assert action.calls[1] - action.calls[0] >= 0.5
    action = Failing(1, retry_after_s=1000)
    assert patiently(action, Patience(0.3, lambda text: None)) == "done"
    assert action.calls[1] - action.calls[0] < 3


def test_a_wait_is_a_slow_phase_and_nothing_else_is() -> None:
    entered: list[str] = []

    @contextmanager
    def phase() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    patience = Patience(10.0, lambda text: None, phase=phase)
    patiently(Failing(0), patience)
    assert entered == []
    patiently(Failing(3), patience)
    assert entered == ["in", "out"]


def test_waiting_draws_no_random_number_that_training_uses() -> None:
    random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), torch.get_rng_state()
    patiently(Failing(3), Patience(10.0, lambda text: None))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_errors_and_patience_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnavailableError("the text", 3.0)))
    assert (str(error), error.retry_after_s) == ("the text", 3.0)
    assert pickle.loads(pickle.dumps(Patience(7.0))) == Patience(7.0)


# --- loading -------------------------------------------------------------------------------------------------


def busy(request: BaseHTTPRequestHandler, data: bytes, retry_after: str = "0") -> None:
    request.send_response(503)
    request.send_header("Retry-After", retry_after)
    request.send_header("Content-Length", "0")
    request.end_headers()


class Returns:
    """A folder that goes, as a lost mount does, and comes back a moment after somebody has said that it is waited for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.away, self.lines = folder, folder.with_name("away"), list[str]()

    def go(self) -> None:
        self.folder.rename(self.away)

    def soon(self, text: str) -> None:
        self.lines.append(text)
        threading.Timer(0.2, lambda: self.away.rename(self.folder)).start()


def config(workers: int = 0, on_bad_sample: str = "raise") -> DataConfig:
    return DataConfig(train="t", val="v", image_size=16, workers=workers, on_bad_sample=on_bad_sample)  # type: ignore[arg-type]


def trained(data: DataSet, patience: Patience, **settings: object) -> list[Batch]:
    taken = config(**settings)  # type: ignore[arg-type]
    sampler = train_sampler(taken, data, 1, global_batch=4, micro_batch=2, rank=0, world_size=1)
    return list(train_batches(taken, data, sampler, 0, 2 * sampler.steps_per_epoch, patience))


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    for left, right in zip(batches, expected, strict=True):
        assert left.keys == right.keys
        assert not left.skipped
        assert torch.equal(left.images_BCHW, right.images_BCHW)


@pytest.fixture
def remote(server: Server, tmp_path: Path) -> DataSet:
    return open_dataset(server.url, CacheFolder(tmp_path / "cache", 10**9))


def shard_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.tar"))


@pytest.mark.parametrize("on_bad_sample", ["raise", "skip"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_that_is_busy_changes_no_batch(
    server: Server, remote: DataSet, shards: DataSet, shared_folder: Path, workers: int, on_bad_sample: str
) -> None:
    lines: list[str] = []
    for name in shard_names(shared_folder)[:2]:
        server.answers[name] = [busy, busy, busy, whole]
    batches = trained(remote, Patience(60.0, lines.append), workers=workers, on_bad_sample=on_bad_sample)
    assert_same(batches, trained(shards, NO_PATIENCE))
    assert all("HTTP 503" in line for line in lines)
    assert len(lines) <= 2


@pytest.mark.parametrize("on_bad_sample", ["raise", "skip"])
@pytest.mark.parametrize("answer", [busy, cut_off, partial(status, 500), partial(status, 429), partial(status, 408)])
def test_a_server_that_stays_busy_is_no_damage(
    server: Server, remote: DataSet, shared_folder: Path, answer: object, on_bad_sample: str
) -> None:
    for name in shard_names(shared_folder):
        server.answers[name] = [answer]  # type: ignore[list-item]
    refusal(lambda: trained(remote, Patience(0.2, lambda text: None), on_bad_sample=on_bad_sample), server.url, "cannot be read now")


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_refusal_is_not_waited_for_and_no_sample_is_skipped_for_it(
    server: Server, remote: DataSet, shared_folder: Path, code: int
) -> None:
    for name in shard_names(shared_folder):
        server.answers[name] = [partial(status, code)]
    with pytest.raises(TransferError) as caught:
        trained(remote, Patience(60.0), on_bad_sample="skip")
    assert server.url in str(caught.value)
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_folder_that_goes_and_comes_back_changes_no_batch(folder: Path, shards: DataSet, workers: int) -> None:
    data, taken, expected = open_dataset(folder), config(workers), trained(shards, NO_PATIENCE)
    sampler = train_sampler(taken, data, 1, global_batch=4, micro_batch=2, rank=0, world_size=1)
    returns = Returns(folder)
    batches = train_batches(taken, data, sampler, 0, 2 * sampler.steps_per_epoch, Patience(60.0, returns.soon))
    loaded = [next(batches)]
    returns.go()
    loaded += list(batches)
    assert_same(loaded, expected)
    (line,) = returns.lines
    assert "the shard cannot be read now (No such file or directory)" in line


@pytest.mark.parametrize("on_bad_sample", ["raise", "skip"])
def test_too_many_open_files_are_no_damage_and_the_way_out_is_named(folder: Path, on_bad_sample: str) -> None:
    data = open_dataset(folder)
    trained(data, NO_PATIENCE)  # everything is imported
    with no_file_is_opened():
        text = refusal(lambda: trained(data, NO_PATIENCE, on_bad_sample=on_bad_sample))
    assert "Too many open files" in text
    assert "raise `ulimit -n`, or lower data.workers" in text
    assert len(trained(data, NO_PATIENCE)) == 20


def test_evaluation_waits_too(server: Server, remote: DataSet, shards: DataSet, shared_folder: Path) -> None:
    for name in shard_names(shared_folder):
        server.answers[name] = [busy, whole]
    place = {"batch": 4, "rank": 0, "world_size": 1}
    batches = list(evaluation_batches(config(), remote, **place, patience=Patience(60.0, lambda text: None)))
    assert_same(batches, list(evaluation_batches(config(), shards, **place)))


@pytest.mark.slow
def test_a_worker_process_that_cannot_open_the_index_is_no_lack_of_memory(folder: Path, shards: DataSet) -> None:
    data, expected, returns = open_dataset(folder), trained(shards, NO_PATIENCE), Returns(folder)
    returns.go()
    assert_same(trained(data, Patience(60.0, returns.soon), workers=1), expected)
    assert len(returns.lines) == 1


@pytest.mark.slow
def test_loader_processes_that_find_no_free_file_are_no_fault_of_the_program(folder: Path) -> None:
    data = open_dataset(folder)
    trained(data, NO_PATIENCE, workers=1)  # the helper that starts them runs
    with no_file_is_opened():
        refusal(lambda: trained(data, NO_PATIENCE, workers=1), "the loader processes", "Too many open files", "lower data.workers")


def end_by_bus_error(shared: int, job: int) -> int:
    os.kill(os.getpid(), signal.SIGBUS)
    return job


@pytest.mark.slow
def test_a_mapped_file_that_cannot_be_read_is_no_lack_of_memory() -> None:
    """The kernel ends a process that reads from a mapping whose disk has failed."""
    text = refusal(lambda: list(map_unordered(end_by_bus_error, 0, [1, 2], 2)), "bus error")
    assert "fewer --processes" not in text


@pytest.mark.slow
def test_a_loader_process_that_dies_of_a_mapped_file_ends_the_run_in_order(folder: Path) -> None:
    data = open_dataset(folder)
    assert data.index.path is not None
    with closing(evaluation_batches(config(1), data, batch=1, rank=0, world_size=1)) as batches:
        next(batches)
        os.truncate(data.index.path, 0)
        refusal(lambda: list(batches), "loader process")  # the connection may be lost before the death of the process is seen


# --- opening -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [True, False])
def test_a_set_that_cannot_be_opened_now_is_not_called_damaged(folder: Path, made: bool) -> None:
    open_dataset(folder)
    if not made:
        next(folder.glob("index-*.npy")).unlink()
    before = contents(folder)
    with no_file_is_opened():
        refusal(lambda: open_dataset(folder), folder, "Too many open files")
    assert contents(folder) == before


def test_a_manifest_that_a_server_does_not_give_now_is_waited_for(server: Server, tmp_path: Path) -> None:
    server.answers[MANIFEST] = [busy]
    refusal(lambda: open_dataset(server.url, CacheFolder(tmp_path / "cache", 10**9)), server.url, MANIFEST, "HTTP 503")


def test_a_full_cache_disk_is_no_damage(remote: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CacheFolder, "reserve", full)
    text = refusal(lambda: trained(remote, NO_PATIENCE, on_bad_sample="skip"), "no space is left on its disk")
    assert "free some" in text


# --- verify --------------------------------------------------------------------------------------------------


def test_verify_lists_no_damage_for_what_it_cannot_read_now(folder: Path) -> None:
    options = VerifyOptions(hashes=True, all_images=True, patience=NO_PATIENCE)
    assert verify_dataset(folder, options) == []
    with no_file_is_opened():
        refusal(lambda: verify_dataset(folder, options), folder)


def test_verify_goes_on_when_a_shard_can_be_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_pipelines.prepare import verify_dataset as module

    failures = [OSError(errno.EIO, os.strerror(errno.EIO)), OSError(errno.ESTALE, os.strerror(errno.ESTALE))]
    really = module.sha256

    def sha256(path: Path) -> str:
        if failures:
            raise failures.pop()
        return really(path)

    monkeypatch.setattr(module, "sha256", sha256)
    lines: list[str] = []
    assert verify_dataset(folder, VerifyOptions(hashes=True, patience=Patience(60.0, lines.append))) == []
    assert len(lines) == 1
    assert failures == []


# --- prepare -------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty images in two classes."""
    return plant(tmp_path / "source", *(f"{name}/{number}.png" for name in ("ant", "bee") for number in range(20)))


def options(patience: Patience = NO_PATIENCE, **others: object) -> PrepareOptions:
    return PrepareOptions(samples_per_shard=5, patience=patience, **others)  # type: ignore[arg-type]


def test_a_source_that_goes_away_stops_prepare_and_nothing_is_bad(images: Path, tmp_path: Path) -> None:
    """Two of eight parts are written when the source goes."""
    expected, source, away, parts = tmp_path / "expected", ImageFolderSource(images), tmp_path / "away", []
    prepare_dataset(source, expected, options())

    def lose_source(done: int) -> None:
        parts.append(done)
        if len(parts) == 2:
            images.rename(away)

    refusal(lambda: prepare_dataset(source, tmp_path / "set", options(), progress=lose_source), images, "cannot be read now")
    assert not (tmp_path / "set" / MANIFEST).exists()
    assert not (tmp_path / "set" / "left_out.tsv").exists()
    away.rename(images)
    done = prepare_dataset(ImageFolderSource(images), tmp_path / "set", options())
    assert (done.samples, done.left_out, done.resumed) == (40, 0, 10)
    assert contents(tmp_path / "set") == contents(expected)


def test_prepare_waits_for_a_source_that_comes_back(images: Path, tmp_path: Path) -> None:
    source, returns = ImageFolderSource(images), Returns(images)

    def lose_source(done: int) -> None:
        if not returns.lines:
            returns.go()

    done = prepare_dataset(source, tmp_path / "set", options(Patience(60.0, returns.soon)), progress=lose_source)
    assert (done.samples, done.left_out) == (40, 0)
    assert len(returns.lines) == 1


def test_an_image_that_gives_an_input_output_error_is_not_left_out(images: Path, tmp_path: Path) -> None:
    """The kernel gives EIO for what is not mapped of a process's memory."""
    (images / "bee" / "7.png").unlink()
    (images / "bee" / "7.png").symlink_to("/proc/self/mem")
    refusal(lambda: prepare_dataset(ImageFolderSource(images), tmp_path / "set", options()), "bee/7.png", "Input/output error")
    assert not (tmp_path / "set" / MANIFEST).exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_ends_with_code_75_and_the_same_command_goes_on(tmp_path: Path, processes: int) -> None:
    """The source goes when the first part is written. It has 100 links to one image, whose decoding takes a while."""
    source, out = tmp_path / "all", tmp_path / "out"
    (tmp_path / "image.png").write_bytes(noise_png(1, 600))
    for split, name, number in itertools.product(("train", "val"), ("ant", "bee"), range(25)):
        (source / split / name).mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / "image.png", source / split / name / f"{number}.png")
    command = ["data", "prepare", source, out, "--patience", 0, "--processes", processes, "--samples-per-shard", 5]
    started = Started("launch", command, {}, tmp_path / "command")
    while not list(out.glob("train/.unfinished/part-*.json")):
        assert started.poll() is None, started.output("stderr")
        time.sleep(0.005)
    source.rename(tmp_path / "away")
    assert started.wait(60) == EXIT_STOPPED, started.output("stderr")
    (error,) = started.output("stderr").splitlines()
    assert error.startswith(f"error: {source}/train/")
    assert "cannot be read now (No such file or directory); nothing shows that it is damaged, so give the same command again" in error
    (tmp_path / "away").rename(source)
    result = tdformer(*command, "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["data_sets"]
    assert [(row["samples"], row["bad_images"]) for row in rows] == [(50, 0), (50, 0)]
    assert "of them before" in rows[0]["state"]


def test_a_listed_file_that_goes_is_waited_for_and_one_that_was_never_there_is_bad(tmp_path: Path) -> None:
    plant(tmp_path, "1.png", "2.png")
    (tmp_path / "list.txt").write_text("1.png 0\n2.png 0\n3.png 0\n")
    source = pickle.loads(pickle.dumps(ListSource(tmp_path / "list.txt")))
    (tmp_path / "2.png").unlink()
    assert source[0].key == "1"
    refusal(lambda: source[1], tmp_path / "2.png", "line 2")
    with pytest.raises(DataError, match=r"3\.png, line 3 .* cannot be read"):
        source[2]


@pytest.mark.parametrize("layout", ["folders", "tars", "lists", "arrays"])
def test_a_source_that_cannot_be_listed_now_is_not_called_wrong(tmp_path: Path, layout: str) -> None:
    for split in ("train", "val"):
        if layout == "folders":
            plant(tmp_path / split, "ant/1.png")
        elif layout == "tars":
            plant_tars(tmp_path / split, {"ant.tar": {"1.png": PNG}})
        elif layout == "lists":
            plant(tmp_path, f"{split}.png")
            (tmp_path / f"{split}.txt").write_text(f"{split}.png 0\n")
        else:
            save_arrays(tmp_path / f"{split}.npz")
    open_splits(str(tmp_path), layout)
    with no_file_is_opened():
        refusal(lambda: open_splits(str(tmp_path), layout), "Too many open files")


def test_a_fingerprint_waits_for_its_files(images: Path, tmp_path: Path) -> None:
    source, away = ImageFolderSource(images), tmp_path / "away"
    images.rename(away)
    refusal(lambda: prepare_dataset(source, tmp_path / "set", options()), images)
    assert not (tmp_path / "set").exists()


def test_a_finished_part_is_not_written_again_because_its_record_cannot_be_read(images: Path, tmp_path: Path) -> None:
    """The record is a link to memory that gives EIO."""
    source, folder = ImageFolderSource(images), tmp_path / "set"

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(source, folder, options(), progress=stop)
    record = next((folder / ".unfinished").glob("part-*.json"))
    record.unlink()
    record.symlink_to("/proc/self/mem")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    refusal(lambda: prepare_dataset(source, folder, options()), record, "Input/output error")
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")} == before


# --- index ---------------------------------------------------------------------------------------------------


def test_index_goes_on_after_a_shard_that_could_not_be_read(server: Server, shared_folder: Path, tmp_path: Path) -> None:
    names = shard_names(shared_folder)
    server.answers[names[3]] = [busy]
    found = find_shards(f"{server.url}/shard-{{000000..{len(names) - 1:06d}}}.tar")
    refusal(lambda: index_shards(found, tmp_path / "out", patience=NO_PATIENCE), names[3], "HTTP 503")
    assert not (tmp_path / "out" / MANIFEST).exists()
    server.answers.clear()
    done = index_shards(found, tmp_path / "out", patience=NO_PATIENCE)
    assert (done.samples, done.resumed) == (23, 15)
    assert server.requests[names[0]] == 1, "what was read is not read again"


def test_index_does_not_blame_a_local_shard_for_the_limit_of_open_files(shared_folder: Path, tmp_path: Path) -> None:
    found = find_shards(str(shared_folder))
    (tmp_path / "out").mkdir()
    with no_file_is_opened():
        refusal(lambda: index_shards(found, tmp_path / "out", patience=NO_PATIENCE), "Too many open files")


def test_a_shard_that_is_a_link_into_a_lost_mount_is_not_missing(folder: Path, tmp_path: Path) -> None:
    shard = sorted(folder.glob("*.tar"))[1]
    (tmp_path / "mount").mkdir()
    shard.rename(tmp_path / "mount" / shard.name)
    shard.symlink_to(tmp_path / "mount" / shard.name)
    assert len(open_dataset(folder)) > 0
    (tmp_path / "mount").rename(tmp_path / "away")
    with pytest.raises(UnavailableError, match=f"shard {shard} cannot be read now"):
        open_dataset(folder)
