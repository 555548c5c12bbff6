"""Tests data sets at URLs: which locations are allowed, how failures are reported, and the cache that processes share."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.formats.manifest import MANIFEST
from data_pipelines.storage import backends, cache_folder, remote_files, shard_cache
from data_pipelines.storage.backends import TransferError
from data_pipelines.storage.cache_folder import CacheFolder
from data_pipelines.storage.locations import BACKENDS, check_location, is_remote, join_location
from data_pipelines.storage.remote_files import read_small
from data_pipelines.storage.shard_cache import ShardCache
from data_pipelines.storage.shard_info import ShardInfo

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


class Server(ThreadingHTTPServer):
    """Serves a folder. `answers` maps a file name to how its next requests are answered instead. The last answer is repeated."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.answers, self.requests = folder, dict[str, list[Answer]](), Counter[str]()
        self.url = f"http://127.0.0.1:{self.server_port}/train"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection: the tests do that on purpose."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/train/")
        self.server.requests[name] += 1
        answers = self.server.answers.get(name, [])
        answer = answers.pop(0) if len(answers) > 1 else answers[0] if answers else whole
        path = self.server.folder / name
        status(404, self, b"") if not path.is_file() else answer(self, path.read_bytes())

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path, answer: Answer | None = None) -> Iterator[Server]:
    """Serve a folder. `answer`: how all requests are answered; None: with the files."""
    server = Server(folder)
    if answer:
        server.answers.update({path.name: [answer] for path in folder.iterdir()})
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def whole(request: BaseHTTPRequestHandler, data: bytes) -> None:
    status(200, request, data)


def status(code: int, request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.send_response(code)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)


def cut_off(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data[: len(data) // 2])


def hang(request: BaseHTTPRequestHandler, data: bytes) -> None:
    cut_off(request, data)
    time.sleep(3)


def slow(request: BaseHTTPRequestHandler, data: bytes) -> None:
    time.sleep(0.5)
    whole(request, data)


def damaged(request: BaseHTTPRequestHandler, data: bytes) -> None:
    whole(request, data[:-1] + bytes([data[-1] ^ 1]))


def endless(request: BaseHTTPRequestHandler, data: bytes) -> None:
    """Answer without a Content-Length, and with more bytes than the file holds."""
    request.send_response(200)
    request.end_headers()
    request.wfile.write(data * 3)


@pytest.fixture
def server(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote_files, "RETRY_PAUSES", (0.01, 0.01))
    monkeypatch.setattr(shard_cache, "TOUCH_SECONDS", 0.0)
    with serving(shared_folder) as server:
        yield server


@pytest.fixture
def listed(shared_folder: Path) -> list[ShardInfo]:
    return [ShardInfo(**shard) for shard in json.loads((shared_folder / MANIFEST).read_text())["shards"]]


@pytest.fixture
def cache(server: Server, tmp_path: Path) -> ShardCache:
    return ShardCache(server.url, CacheFolder(tmp_path / "cache", 10**9))


def content(file: FileIO) -> bytes:
    with file:
        return file.readall()


def sha256_of(cache: ShardCache, shard: ShardInfo) -> str:
    return hashlib.sha256(content(cache.open(shard))).hexdigest()


def shards_in(cache: ShardCache) -> set[str]:
    """List the file names of complete and partial shards."""
    return {path.name for path in cache.folder.path.glob("*/*") if path.suffix != ".lock"}


def bounded(cache: ShardCache, limit_bytes: int) -> ShardCache:
    """Return the same cache with another limit."""
    return replace(cache, folder=replace(cache.folder, limit_bytes=limit_bytes))


def bytes_in(cache: ShardCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.path.glob("*/*"))


def error_of(action: Callable[[], object], *mentions: object, kind: type[UserError] = UserError) -> str:
    """Check that an action raises an error of one line that mentions all of `mentions`, and return its text."""
    with pytest.raises(kind) as caught:
        action()
    text = str(caught.value)
    assert [str(mention) for mention in mentions if str(mention) not in text] == []
    assert "\n" not in text
    return text


# --- locations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["data/train", "/data/a:b/train", "data/a:b/train", "./a:b", "C:\\data\\train", "C:/data", "größe/ein bild", "data/user@host", "."],
)
def test_paths_pass_unchanged(path: str) -> None:
    assert check_location(path) == path
    assert not is_remote(path)
    assert join_location(path, "shard-000000.tar") == os.path.join(path, "shard-000000.tar")


@pytest.mark.parametrize(
    "url",
    [
        "http://host/train",
        "https://host.example:8443/a/b/train/",
        "s3://bucket/train",
        "gs://bucket",
        "gcs://bucket/train",
        "az://container/train",
        "abfs://container@account.dfs.core.windows.net/train",
        "hf://datasets/user/name@main/train",
        "file:///data/train",
    ],
)
def test_urls_pass_unchanged(url: str) -> None:
    assert check_location(url) == url
    assert is_remote(url)
    assert join_location(url, "index.npz") == f"{url.rstrip('/')}/index.npz"


@pytest.mark.parametrize(
    "text",
    [
        *("pipe:cat x", "pipe:", "PIPE:cat x", "Pipe://cat", "exec:rm", "ssh://host/x", "memory://x", "data:text/plain,x", "ftp://host/x"),
        *("simplecache::s3://bucket/x", "s3://bucket/a::file:///b", "a::b", "data//pipe://x", "S3://bucket/x", "github://a:b@/"),
    ],
)
def test_what_would_execute_or_is_unknown_is_refused(text: str) -> None:
    error_of(lambda: check_location(text), "refused", "execute", "pipe:", "https", kind=UserError)


@pytest.mark.parametrize("text", ["", " ", " pipe:cat x", "\tpipe:x", "\x00pipe:x", "pi\npe:cat x", "data/train\n", "\u200bpipe:x"])
def test_blanks_and_control_characters_that_hide_a_scheme_are_refused(text: str) -> None:
    error_of(lambda: check_location(text), "control characters", kind=UserError)


@pytest.mark.parametrize(
    "url", ["https://me:SECRET@host/x", "https://SECRET@host/x", "s3://key:SECRET@bucket/x", "abfs://me:SECRET@host/x"]
)
def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    assert "SECRET" not in error_of(lambda: check_location(url), "credentials", "host" if "host" in url else "bucket", kind=UserError)


@pytest.mark.parametrize(
    "url", ["https://host/x?token=SECRET", "https://host/x#SECRET", "https://me:SECRET/2@host/x", "pipe:curl https://me:SECRET@host"]
)
def test_no_refusal_repeats_a_secret(url: str) -> None:
    assert "SECRET" not in error_of(lambda: check_location(url), "refused" if "/2@" not in url else "whole URL", kind=UserError)


@pytest.mark.parametrize(
    "url", ["http:host/x", "http:///x", "https://", "http://host:x/y", "s3:///x", "s3:bucket", "file://data/train", "file:data"]
)
def test_incomplete_urls_are_refused(url: str) -> None:
    error_of(lambda: check_location(url), "no whole URL", "://", kind=UserError)


@given(st.lists(st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="/:"), min_size=1), min_size=1).map("/".join))
def test_any_path_without_a_colon_is_a_path(path: str) -> None:
    assert check_location(path) == path
    assert not is_remote(path)


@given(st.text())
def test_whatever_passes_is_a_url_of_a_known_scheme_or_has_no_scheme(text: str) -> None:
    try:
        check_location(text)
    except UserError:
        return
    scheme = re.match(r"\s*([A-Za-z][\w+.-]+):", text, re.ASCII)
    assert is_remote(text) == bool(scheme)
    assert scheme is None or (scheme[1] in BACKENDS and "::" not in text)


@given(st.sampled_from(["pipe", "exec", "PIPE", "sh", "ssh+git"]), st.text())
def test_no_text_behind_an_unknown_scheme_makes_it_pass(scheme: str, rest: str) -> None:
    error_of(lambda: check_location(f"{scheme}:{rest}"), kind=UserError)


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "..", ".hidden", "", "http://host/x", "a?b", "a b", "x\n"])
@pytest.mark.parametrize("base", ["https://host/train", "data/train"])
def test_file_names_that_lead_elsewhere_are_refused(base: str, name: str) -> None:
    error_of(lambda: join_location(base, name), base, repr(name))


# --- small files -------------------------------------------------------------------------------------------


def test_a_small_file_is_read(server: Server, shared_folder: Path) -> None:
    assert read_small(join_location(server.url, MANIFEST), 10**6) == (shared_folder / MANIFEST).read_bytes()
    assert server.requests == {MANIFEST: 1}


def test_a_file_url_is_read(shared_folder: Path) -> None:
    assert read_small(f"file://{shared_folder}/{MANIFEST}", 10**6) == (shared_folder / MANIFEST).read_bytes()


@pytest.mark.parametrize("answer", [whole, endless])
def test_a_small_file_that_is_too_long_is_refused(server: Server, shared_folder: Path, answer: Answer) -> None:
    server.answers[MANIFEST] = [answer]
    error_of(lambda: read_small(join_location(server.url, MANIFEST), 100), server.url, "more than 100 bytes")


@pytest.mark.parametrize(
    ("answer", "says", "attempts"),
    [
        (partial(status, 404), "not found", 1),
        (partial(status, 403), "no permission", 1),
        (partial(status, 401), "no permission", 1),
        (partial(status, 410), "HTTP 410", 1),
        (partial(status, 500), "HTTP 500", 3),
        (partial(status, 429), "HTTP 429", 3),
        (partial(status, 408), "HTTP 408", 3),
        (cut_off, "cannot be read now", 3),
    ],
)
def test_failures_are_reported_and_tried_again_if_they_may_pass(server: Server, answer: Answer, says: str, attempts: int) -> None:
    server.answers[MANIFEST] = [answer]
    kind = UnavailableError if attempts > 1 else TransferError
    error_of(lambda: read_small(join_location(server.url, MANIFEST), 10**6), join_location(server.url, MANIFEST), says, kind=kind)
    assert server.requests[MANIFEST] == attempts


@pytest.mark.parametrize("failure", [cut_off, partial(status, 503)])
def test_a_failure_that_passes_is_not_noticed(server: Server, shared_folder: Path, failure: Answer) -> None:
    server.answers[MANIFEST] = [failure, failure, whole]
    assert read_small(join_location(server.url, MANIFEST), 10**6) == (shared_folder / MANIFEST).read_bytes()


def test_a_silent_server_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "SILENCE_SECONDS", 0.3)
    server.answers[MANIFEST] = [hang]
    start = time.monotonic()
    error_of(lambda: read_small(join_location(server.url, MANIFEST), 10**6), server.url, "no answer for 0.3 seconds")
    assert time.monotonic() - start < 2.5


class StubbornBackend:
    """A file system without any time limit."""

    def open(self, url: str, mode: str, **options: object) -> None:
        time.sleep(3)


def test_a_backend_that_never_returns_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(remote_files, "RETRY_PAUSES", ())
    monkeypatch.setattr(backends, "open_filesystem", lambda url: StubbornBackend())
    error_of(lambda: read_small("s3://bucket/train/manifest.json", 10), "s3://bucket", "no answer")


@pytest.mark.usefixtures("server")  # this fixture shortens the pauses between attempts
def test_a_server_that_is_not_there_is_reported() -> None:
    error_of(lambda: read_small("http://127.0.0.1:9/manifest.json", 10), "http://127.0.0.1:9/manifest.json", "cannot be read")


@pytest.mark.parametrize("scheme", ["s3", "gs", "gcs", "az", "abfs", "abfss"])
def test_a_missing_backend_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = BACKENDS[scheme]
    monkeypatch.setitem(sys.modules, package, None)  # an import of None fails as if the package were not installed
    error_of(lambda: read_small(f"{scheme}://bucket/train/manifest.json", 10), f"{scheme}://bucket", f"pip install {package}")


def test_reading_refuses_what_executes() -> None:
    error_of(lambda: read_small("pipe:echo x", 10), "refused", kind=UserError)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(TransferError("the text")))
    assert (type(error), str(error)) == (TransferError, "the text")


# --- the cache ---------------------------------------------------------------------------------------------


def test_shards_are_downloaded_once_and_equal(server: Server, cache: ShardCache, shared_folder: Path, listed: list[ShardInfo]) -> None:
    cache.check(listed)
    for _ in range(2):
        for shard in listed:
            assert content(cache.open(shard)) == (shared_folder / shard.name).read_bytes()
    assert server.requests == {shard.name: 1 for shard in listed}
    assert shards_in(cache) == {shard.sha256 for shard in listed}


def test_a_shard_is_read_at_any_offset(cache: ShardCache, shared_folder: Path, listed: list[ShardInfo]) -> None:
    with cache.open(listed[0]) as file:
        file.seek(512)
        assert file.read(100) == (shared_folder / listed[0].name).read_bytes()[512:612]


def test_data_sets_that_share_a_folder_do_not_mix(server: Server, cache: ShardCache, listed: list[ShardInfo]) -> None:
    other = replace(cache, base=f"{server.url}/")  # a slash at the end does not change the folder of a data set
    content(cache.open(listed[0]))
    content(other.open(listed[0]))
    assert server.requests[listed[0].name] == 1
    error_of(lambda: replace(cache, base=server.url + "2").open(listed[0]), f"{server.url}2/{listed[0].name}", "not found")


@pytest.mark.parametrize("answers", [[cut_off, whole], [partial(status, 500), cut_off, whole], [damaged, whole], [endless, whole]])
def test_a_bad_download_is_tried_again(server: Server, cache: ShardCache, listed: list[ShardInfo], answers: list[Answer]) -> None:
    server.answers[listed[0].name] = list(answers)
    assert sha256_of(cache, listed[0]) == listed[0].sha256
    assert server.requests[listed[0].name] == len(answers)


@pytest.mark.parametrize(
    ("answer", "says", "attempts"),
    [(cut_off, "cannot be read", 3), (partial(status, 403), "no permission", 1), (damaged, "SHA-256", 2), (endless, "more than", 2)],
)
def test_a_download_that_stays_bad_is_reported_and_leaves_nothing(
    server: Server, cache: ShardCache, listed: list[ShardInfo], answer: Answer, says: str, attempts: int
) -> None:
    server.answers[listed[0].name] = [answer]
    error_of(lambda: cache.open(listed[0]), join_location(server.url, listed[0].name), says)
    assert server.requests[listed[0].name] == attempts
    assert shards_in(cache) == set()


def test_a_shorter_shard_is_reported(server: Server, cache: ShardCache, listed: list[ShardInfo]) -> None:
    longer = replace(listed[0], bytes=listed[0].bytes + 1)
    error_of(lambda: cache.open(longer), listed[0].name, f"has {listed[0].bytes} bytes", f"says {longer.bytes}")


def test_a_cached_file_of_another_size_is_downloaded_again(server: Server, cache: ShardCache, listed: list[ShardInfo]) -> None:
    content(cache.open(listed[0]))
    (cached,) = cache.folder.path.glob(f"*/{listed[0].sha256}")
    cached.write_bytes(b"cut")
    assert sha256_of(cache, listed[0]) == listed[0].sha256
    assert server.requests[listed[0].name] == 2


# --- its bound ---------------------------------------------------------------------------------------------


def test_the_least_recently_used_shard_goes(server: Server, cache: ShardCache, listed: list[ShardInfo]) -> None:
    first, second, third, fourth = listed[:4]
    cache = bounded(cache, sum(shard.bytes for shard in listed[:3]) + 100)
    for shard in (first, second, third, first):
        content(cache.open(shard))
        time.sleep(0.02)  # file systems record times coarsely, so the uses need a pause between them
    content(cache.open(fourth))
    assert second.sha256 not in shards_in(cache)
    assert first.sha256 in shards_in(cache)


def test_the_bound_holds_at_any_time(server: Server, cache: ShardCache, listed: list[ShardInfo]) -> None:
    cache = bounded(cache, 2 * max(shard.bytes for shard in listed))
    cache.check(listed)
    seen = []
    for round_ in range(3):
        for shard in listed[round_:] + listed[:round_]:
            assert sha256_of(cache, shard) == shard.sha256
            seen.append(bytes_in(cache))
    assert 0 < max(seen) <= cache.folder.limit_bytes


def test_threads_wait_for_room_and_get_it(
    server: Server, cache: ShardCache, listed: list[ShardInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_folder, "ROOM_POLL_SECONDS", 0.01)
    cache = bounded(cache, 2 * max(shard.bytes for shard in listed))
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda shard: sha256_of(cache, shard), listed * 4))
    assert digests == [shard.sha256 for shard in listed * 4]
    assert bytes_in(cache) <= cache.folder.limit_bytes


def test_an_evicted_shard_stays_readable_to_who_has_it_open(server: Server, cache: ShardCache, listed: list[ShardInfo]) -> None:
    cache = bounded(cache, 2 * max(shard.bytes for shard in listed))
    file = cache.open(listed[0])
    for shard in listed[1:]:
        content(cache.open(shard))
    assert listed[0].sha256 not in shards_in(cache)
    assert hashlib.sha256(content(file)).hexdigest() == listed[0].sha256


def test_other_files_in_the_folder_are_left_alone(server: Server, cache: ShardCache, listed: list[ShardInfo]) -> None:
    cache = bounded(cache, 2 * max(shard.bytes for shard in listed))
    thesis = cache.folder.path / "mine" / "thesis.part"
    thesis.parent.mkdir(parents=True)
    thesis.write_bytes(bytes(10 * cache.folder.limit_bytes))
    for shard in listed:
        content(cache.open(shard))
    assert thesis.exists()


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_limit_that_is_too_small_is_refused(cache: ShardCache, listed: list[ShardInfo], at_once: int) -> None:
    least = sum(sorted(shard.bytes for shard in listed)[-at_once - 1 :])
    too_small = bounded(cache, least - 1)
    error_of(lambda: too_small.check(listed, at_once), cache.base, f"{at_once + 1} shards", f"at least {least} bytes")
    bounded(cache, least).check(listed, at_once)


def test_a_set_of_one_shard_needs_no_room_for_another(cache: ShardCache, listed: list[ShardInfo]) -> None:
    bounded(cache, listed[0].bytes).check(listed[:1], at_once=4)


@pytest.mark.parametrize(
    "change", [{"sha256": "../" * 20 + "home/x"}, {"sha256": ""}, {"sha256": "A" * 64}, {"bytes": -1}, {"name": "../x"}]
)
def test_a_manifest_that_leads_out_of_the_cache_is_refused(cache: ShardCache, listed: list[ShardInfo], change: dict[str, Any]) -> None:
    evil = replace(listed[0], **change)
    for action in (lambda: cache.check([evil]), lambda: cache.open(evil)):
        error_of(action, cache.base)


# --- the local disk ----------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_reported(cache: ShardCache, tmp_path: Path, listed: list[ShardInfo]) -> None:
    (tmp_path / "file").touch()
    unusable = replace(cache, folder=CacheFolder(tmp_path / "file" / "cache", 10**9))
    for action in (unusable.check, lambda shards: unusable.open(shards[0])):
        error_of(lambda action=action: action(listed), tmp_path / "file", "Not a directory")


def test_a_full_disk_is_reported(cache: ShardCache, listed: list[ShardInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_cache.os, "fsync", full)
    error_of(lambda: cache.open(listed[0]), cache.folder.path, "no space")
    monkeypatch.undo()
    assert shards_in(cache) == set()


# --- many processes ----------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pickled_cache_names_the_same_folder(cache: ShardCache, listed: list[ShardInfo]) -> None:
    content(cache.open(listed[0]))
    copied = pickle.loads(pickle.dumps(cache))
    assert copied == cache
    assert content(copied.open(listed[0])) == content(cache.open(listed[0]))


@pytest.mark.slow
def test_processes_download_a_shard_once(server: Server, cache: ShardCache, listed: list[ShardInfo]) -> None:
    for shard in listed:
        server.answers[shard.name] = [slow]
    # This process has fsspec's thread by now, as a training process has. A loader process must start its own.
    read_small(join_location(server.url, MANIFEST), 10**6)
    with ProcessPoolExecutor(3, multiprocessing.get_context("forkserver")) as pool:
        digests = [list(pool.map(partial(sha256_of, cache), [shard] * 3)) for shard in listed]
    assert digests == [[shard.sha256] * 3 for shard in listed]
    assert server.requests - Counter([MANIFEST]) == {shard.name: 1 for shard in listed}


@pytest.mark.slow
def test_a_killed_downloader_is_replaced_and_leaves_nothing(server: Server, cache: ShardCache, listed: list[ShardInfo]) -> None:
    shard, other = listed[:2]
    cache = bounded(cache, 2 * max(shard.bytes for shard in listed))
    server.answers[shard.name] = [hang, hang, whole]
    for attempt in range(2):  # a leftover of the same shard must not take the room of the next download
        process = multiprocessing.get_context("forkserver").Process(target=sha256_of, args=(cache, shard))
        process.start()
        wait_until(lambda attempt=attempt: server.requests[shard.name] > attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        (left,) = shards_in(cache)
        assert left.endswith(".part")
    assert sha256_of(cache, other) == other.sha256
    assert shards_in(cache) == {other.sha256}
    assert sha256_of(cache, shard) == shard.sha256
