"""Tests the indexing of shards that others wrote: they train like ours, and every mistake gives an error of one sentence."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from data_pipelines.config import DataConfig
from data_pipelines.errors import DataError, UnavailableError, UserError
from data_pipelines.formats.manifest import MANIFEST
from data_pipelines.formats.manifest_reader import read_manifest
from data_pipelines.formats.wds_scanner import scan_tar, split_name
from data_pipelines.loading.dataloader import train_batches, train_sampler
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.class_names import read_class_names
from data_pipelines.prepare.index_shards import IndexResult, index_shards, preview_indexing
from data_pipelines.prepare.shard_list import ShardList, find_shards
from data_pipelines.prepare.verify_dataset import VerifyOptions, verify_dataset
from data_pipelines.prepare.working_folder import working_folder
from data_pipelines.storage import remote_files
from data_pipelines.storage.cache_folder import CacheFolder
from data_pipelines.storage.patience import NO_PATIENCE
from launch.cli import app
from tests.conftest import REPOSITORY, stored, tdformer, write_config
from tests.unit.conftest import MemorySource, contents, keys_of, noise_png, noise_sample
from tests.unit.test_shard_cache import Server, cut_off, damaged, endless, serving, slow, status

SAMPLES, PER_SHARD, CLASSES = 23, 5, 3
NAMES = [f"set-{number:04d}.tar" for number in range(5)]
NOTATION = "set-{0000..0004}.tar"
THOROUGH = VerifyOptions(hashes=True, all_images=True)

Members = list[tuple[str, bytes]]


def refusal(action: Callable[[], object], *mentions: object) -> str:
    """Check that an action raises a UserError of one line that mentions all of `mentions`, and return its text."""
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert [str(mention) for mention in mentions if str(mention) not in text] == []
    assert "\n" not in text
    return text


def write_foreign(folder: Path, samples: int = SAMPLES, per_shard: int = PER_SHARD) -> Path:
    """Write shards with WebDataset's own writer, with more members than image and class, as published data sets have."""
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "set-%04d.tar"), maxcount=per_shard, verbose=0) as writer:
        for number in range(samples):
            key, image = f"n{number:03d}_{number}", noise_png(number)
            writer.write({"__key__": key, ("png", "jpeg")[number % 2]: image, "cls": number % CLASSES, "json": {"number": number}})
    return folder


def members_of(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def write_members(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def image_bytes(data: DataSet, sample: int) -> bytes:
    return data.reader._bytes(sample)  # type: ignore[attr-defined]


def everything(data: DataSet) -> list[tuple[str, int, bytes]]:
    return [(data.index.key_of(sample), data.index.label_of(sample), image_bytes(data, sample)) for sample in range(len(data))]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards from which `tars` is copied. No test may change them."""
    return write_foreign(tmp_path_factory.mktemp("foreign") / "tars")


@pytest.fixture
def tars(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "tars")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def cache(tmp_path: Path) -> CacheFolder:
    return CacheFolder(tmp_path / "cache", 10**9)


@pytest.fixture
def web(tars: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote_files, "RETRY_PAUSES", (0.01, 0.01))
    with serving(tars) as server:
        yield server


def index(text: object, folder: Path, classes: list[str] | None = None, **options: Any) -> IndexResult:
    return index_shards(find_shards(str(text)), folder, classes, **{"patience": NO_PATIENCE, **options})


# --- the samples -------------------------------------------------------------------------------------------


def test_what_webdataset_wrote_is_read_as_webdataset_reads_it(
    tars: Path, out: Path, web: Server, cache: CacheFolder, tmp_path: Path
) -> None:
    before = contents(tars)
    assert index(tars, out) == IndexResult(SAMPLES, CLASSES, resumed=0)
    assert index(f"{web.url}/{NOTATION}", tmp_path / "remote") == IndexResult(SAMPLES, CLASSES, resumed=0)
    expected = []
    for sample in webdataset.WebDataset([str(tars / name) for name in NAMES], shardshuffle=False):
        expected.append((sample["__key__"], int(sample["cls"]), sample.get("png") or sample["jpeg"]))
    here, there = open_dataset(out), open_dataset(tmp_path / "remote", cache)
    assert everything(here) == everything(there) == expected
    assert [np.asarray(here.read(number)).shape for number in (0, 22)] == [(20, 20, 3)] * 2
    assert here.digest() == there.digest() == here.manifest.digest
    assert here.manifest.blocks == [5, 5, 5, 5, 3]
    assert here.classes == ["0", "1", "2"]
    assert (here.is_streamed, there.is_streamed) == (False, True)
    assert contents(tars) == before
    for folder in (out, tmp_path / "remote"):
        assert sorted(path.name.partition("-")[0] for path in folder.iterdir()) == ["index", MANIFEST]


KEYS = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="./\\"), min_size=1, max_size=8)
PICTURE = st.tuples(st.sampled_from(["jpg", "jpeg", "png"]), st.integers(0, 9), st.binary(max_size=700), st.booleans())


@pytest.mark.slow
@given(st.lists(st.tuples(KEYS, PICTURE), min_size=1, max_size=12, unique_by=lambda item: item[0]), st.integers(1, 5))
def test_any_samples_that_webdataset_packs_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[str, tuple[str, int, bytes, bool]]], per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "tars").mkdir()
    with webdataset.ShardWriter(str(folder / "tars" / "x-%d.tar"), maxcount=per_shard, verbose=0, encoder=False) as writer:
        for key, (extension, label, image, more) in samples:
            other = {"txt": b"x", "seg.png": b"y", "npy": b"z"} if more else {}
            writer.write({"__key__": key, extension: image, "cls": str(label).encode(), **other})
    index(f"{folder}/tars/x-{{0..{len(list((folder / 'tars').iterdir())) - 1}}}.tar", folder / "out", ignore_unused=True)
    assert everything(open_dataset(folder / "out")) == [(key, label, image) for key, (_, label, image, _) in samples]


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_micro_batches_are_the_same_from_anywhere(
    tars: Path, out: Path, web: Server, cache: CacheFolder, tmp_path: Path, shuffle: str
) -> None:
    index(tars, out)
    index(f"{web.url}/{NOTATION}", tmp_path / "remote")
    shutil.copytree(tars, tmp_path / "own")  # now the shards are beside the manifest, as `data prepare` writes them
    manifest = json.loads((out / MANIFEST).read_text()) | {"version": 2}
    del manifest["shards_at"]
    (tmp_path / "own" / MANIFEST).write_text(json.dumps(manifest))
    config = DataConfig(train="t", val="v", image_size=16, workers=0, shuffle=shuffle, shuffle_window=2)  # type: ignore[arg-type]
    runs = []
    for folder in (out, tmp_path / "remote", tmp_path / "own"):
        data = open_dataset(folder, cache)
        sampler = train_sampler(config, data, 1, global_batch=6, micro_batch=3, rank=0, world_size=1)
        runs.append(list(train_batches(config, data, sampler, 0, 6)))
    for batches in runs[1:]:
        for left, right in zip(runs[0], batches, strict=True):
            assert left.keys == right.keys
            assert torch.equal(left.labels_B, right.labels_B)
            assert torch.equal(left.images_BCHW, right.images_BCHW)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(tars: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        index(tars, tmp_path / str(processes), processes=processes)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_members_are_taken_as_webdataset_takes_them(tmp_path: Path) -> None:
    names = ["a.jpg", "v1.5/b.cls", "./c.x.PNG", "._a.jpg", "d/.hidden.jpg", "e"]
    assert [split_name(name) for name in names] == [("a", "jpg"), ("v1.5/b", "cls"), ("./c", "x.png"), ("", ""), ("", ""), ("e", "")]
    path = write_members(tmp_path / "x.tar", [("./v1.5/a.JPG", b"1"), ("._a.jpg", b"0"), ("./v1.5/a.CLS", b"7\n")])
    assert [row[2:] for row in scan_tar(path, "")] == [(7, "./v1.5/a")]


# --- which shards ------------------------------------------------------------------------------------------


def test_a_folder_braces_and_a_list_name_the_same_shards(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tars / "notes.md").touch()
    (tars / "._set-0000.tar").touch()
    (tmp_path / "list.txt").write_text("# the shards\n\n" + "".join(f"tars/{name}\n" for name in NAMES))
    expected = ShardList(str(tars), NAMES)
    monkeypatch.chdir(tmp_path)
    for text in (tars, "tars", tars / NOTATION, f"tars/{NOTATION}", "tars/../tars/set-000{0,1,2,3,4}.tar", tmp_path / "list.txt"):
        assert find_shards(str(text)) == expected
    assert find_shards("https://host/a/x-{08..10}.tar") == ShardList("https://host/a", ["x-08.tar", "x-09.tar", "x-10.tar"])
    (tmp_path / "urls.txt").write_text("s3://bucket/b.tar\ns3://bucket/a.tar\n")
    assert find_shards("urls.txt") == ShardList("s3://bucket", ["b.tar", "a.tar"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pipe:cat x-{0..1}.tar", "refused"),
        ("pi{p,x}e:cat /x.tar", "refused"),
        ("{pipe,http}://host/x.tar", "refused"),
        ("https://me:SECRET@host/x-{0..1}.tar", "credentials"),
        ("https://host/x-{0..1}.tar?token=SECRET", "query"),
        ("https://host/{a,b}/x.tar", "lie apart"),
        ("https://host/folder/", "cannot be listed"),
        ("https://host/list.txt", "download it first"),
        ("https://host/x y.tar", "blank"),
        ("https://host/x=y.tar", "'x=y.tar'"),
        ("https://host/x-{0..1.tar", "brace"),
        ("https://host/x{0,0}.tar", "twice"),
        ("nowhere/.x.tar", "no name for a shard"),
    ],
)
def test_what_names_no_set_of_shards_is_refused(text: str, says: str) -> None:
    assert "SECRET" not in refusal(lambda: find_shards(text), says)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("", "lists no shard"),
        ("# none\n", "lists no shard"),
        ("pipe:cat x\n", "refused"),
        ("a/x.tar\nb/y.tar\n", "lie apart"),
        ("/a/x.tar\nhttps://host/a/x.tar\n", "lie apart"),
        ("\xff", "no UTF-8"),
    ],
)
def test_a_list_that_names_no_set_of_shards_is_refused(tmp_path: Path, lines: str, says: str) -> None:
    (tmp_path / "list.txt").write_text(lines, encoding="latin-1")
    refusal(lambda: find_shards(str(tmp_path / "list.txt")), says)


def test_shards_that_are_not_there_are_reported_before_anything_is_read(tars: Path, out: Path) -> None:
    (tars / "empty").mkdir()
    refusal(lambda: find_shards(str(tars / "empty")), "no .tar file")
    refusal(lambda: find_shards(str(tars / "no.txt")), "cannot be read")
    refusal(lambda: index(tars / "set-{0003..0005}.tar", out), tars / "set-0005.tar", "is missing")
    os.mkfifo(tars / "set-0005.tar")
    refusal(lambda: index(tars, out), tars / "set-0005.tar", "is no file")
    assert not out.exists()


# --- bad shards --------------------------------------------------------------------------------------------

JPEG, LABEL = ("z.jpg", b"image"), ("z.cls", b"1")


@pytest.mark.parametrize(
    ("added", "mentions"),
    [
        ([JPEG], ("sample z in", "lacks its image or its .cls label")),
        ([LABEL], ("sample z in", "lacks")),
        ([JPEG, ("z.png", b"other"), LABEL], ("sample z in", "two images (z.jpg, z.png)")),
        ([JPEG, LABEL, JPEG], ("sample z in", "twice (z.jpg)")),
        ([JPEG, LABEL, LABEL], ("sample z in", "two labels")),
        ([JPEG, ("z.cls", b"cat")], ("z.cls in", "'cat'", "class number")),
        ([JPEG, ("z.cls", b"1_0")], ("z.cls in", "class number")),
        ([JPEG, ("z.cls", b"")], ("z.cls in", "class number")),
        ([JPEG, ("z.cls", b"9" * 29)], ("z.cls in", "class number")),
        ([JPEG, ("z.cls", b"-1")], ("sample z in", "label -1")),
        ([JPEG, ("z.cls", b"2000000000")], ("sample z in", "label 2000000000")),
        ([("../z.jpg", b"")], ("'../z.jpg' in", "no name for a sample")),
        ([("/etc/z.jpg", b"")], ("'/etc/z.jpg' in",)),
        ([("a/../../z.json", b"")], ("z.json' in",)),
        ([("z\n.jpg", b"")], (r"'z\n.jpg' in",)),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_a_bad_sample_is_named(tars: Path, out: Path, web: Server, remote: bool, added: Members, mentions: tuple[str, ...]) -> None:
    path = tars / NAMES[3]
    write_members(path, members_of(path) + added)
    place = web.url if remote else str(tars)
    refusal(lambda: index(f"{place}/{NOTATION}", out), f"{place}/{NAMES[3]}", "give the command again", *mentions)
    assert not (out / MANIFEST).exists()
    write_members(path, members_of(path)[: -len(added)])
    assert index(f"{place}/{NOTATION}", out) == IndexResult(SAMPLES, CLASSES, resumed=15)
    assert len(contents(out)) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no readable tar file"),
        (b"text" * 500, "no readable tar file"),
        (gzip.compress(b"tar", mtime=0), "compressed (gzip)"),
        (b"\x28\xb5\x2f\xfdxxxx", "compressed (zstd)"),
        (bytes(10240), "holds no sample"),
    ],
)
def test_what_is_no_shard_is_named(tars: Path, out: Path, content: bytes, says: str) -> None:
    (tars / NAMES[1]).write_bytes(content)
    refusal(lambda: index(tars, out), tars / NAMES[1], says)


def test_a_shard_cut_off_anywhere_is_reported(tars: Path) -> None:
    path = tars / NAMES[0]
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for kept in [*range(512, end, 512), *np.random.default_rng(0).integers(1, end, 40).tolist()]:
        path.write_bytes(whole[:kept])
        refusal(lambda: scan_tar(path, "mend it"), path, "no readable tar file", "mend it")


def told(path: Path) -> str:
    try:
        return "whole" if len(scan_tar(path, "mend it")) == PER_SHARD else "less"
    except DataError as error:
        return str(error)


@given(st.lists(st.tuples(st.integers(0, 2**13), st.integers(0, 255)), max_size=6), st.booleans())
def test_damage_is_reported_in_one_sentence_or_changes_no_header(
    original: Path, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], mend: bool
) -> None:
    """An attacker can make the checksum of a changed header right, so that is tried too."""
    path = tmp_path_factory.mktemp("damaged") / "x.tar"
    content = bytearray((original / NAMES[0]).read_bytes())
    for position, byte in changes:
        content[position] = byte
        header = position // 512 * 512
        if mend and content[header + 257 : header + 262] == b"ustar":
            block = content[header : header + 512]
            content[header + 148 : header + 156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]  # type: ignore[attr-defined]
    path.write_bytes(content)
    found = told(path)
    assert "\n" not in found
    assert mend or found != "less"


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("size", [-512, -(2**40), 2**40, 2**62])
def test_a_header_with_an_impossible_size_ends_the_reading(tmp_path: Path, kind: bytes, size: int) -> None:
    """A negative size would lead tarfile back to the same header for ever."""
    info = tarfile.TarInfo("a.jpg")
    info.type, info.size = kind, size
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) * 3 + bytes(1024))
    refusal(lambda: scan_tar(tmp_path / "x.tar", "mend it"), "x.tar", "mend it")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_only_files_are_samples(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "a.cls"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (kind, "/etc/passwd") if name == "a.jpg" else (tarfile.REGTYPE, "")
            info.size = 1 if name == "a.cls" else 0
            tar.addfile(info, io.BytesIO(b"1"))
    refusal(lambda: scan_tar(tmp_path / "x.tar", "mend it"), "sample a in", "lacks its image")


def test_the_same_key_in_two_shards_is_reported(tars: Path, out: Path) -> None:
    write_members(tars / NAMES[3], [*members_of(tars / NAMES[3]), ("n001_1.jpg", b"x"), ("n001_1.cls", b"1")])
    refusal(lambda: index(tars, out), tars / NAMES[0], tars / NAMES[3], "n001_1", f"remove {out}")
    assert not (out / MANIFEST).exists()


# --- members that no sample has ------------------------------------------------------------------------------


def test_members_that_no_sample_has_are_counted_by_extension(tars: Path, out: Path) -> None:
    path = tars / NAMES[2]
    write_members(path, [*members_of(path), ("notes.txt", b""), ("more.txt", b""), ("._n000_0.png", b"of macOS"), ("README", b"")])
    assert index(tars, out).unused == {"json": SAMPLES, "txt": 2, "": 2}
    assert index(tars, out).unused == {"json": SAMPLES, "txt": 2, "": 2}, "a repeated command says it too"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("photo.0.jpg", "first dot, which makes '0.jpg' its extension"),
        ("n000_0.mask.png", "first dot"),
        ("photo.webp", "it is no .jpg, .jpeg or .png"),
        (".photo.jpg", "begins with a dot"),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_images_that_no_sample_has_are_refused_unless_that_is_meant(
    tars: Path, out: Path, web: Server, remote: bool, name: str, says: str
) -> None:
    path = tars / NAMES[3]
    write_members(path, [*members_of(path), (name, noise_png(1)), ("photo.0.cls", b"2")])
    place = f"{web.url if remote else tars}/{NOTATION}"
    refusal(lambda: index(place, out), NAMES[3], f"1 members that look like images and belong to no sample, such as {name}: ", says)
    assert not (out / MANIFEST).exists()
    done = index(place, out, ignore_unused=True)
    assert (done.samples, done.resumed) == (SAMPLES, 15), "what was read before the refusal is kept"
    assert sum(done.unused.values()) == SAMPLES + 2


def test_a_link_in_a_shard_is_an_image_that_no_sample_has(tars: Path, out: Path) -> None:
    with tarfile.open(tars / NAMES[0], "a") as tar:
        info = tarfile.TarInfo("again.png")
        info.type, info.linkname = tarfile.SYMTYPE, "n000_0.png"
        tar.addfile(info)
    refusal(lambda: index(tars, out), NAMES[0], "again.png: it is a link")


@pytest.mark.slow
def test_the_command_refuses_lost_images_and_takes_its_own_advice(tars: Path, out: Path) -> None:
    write_members(tars / NAMES[0], [*members_of(tars / NAMES[0]), ("photo.0.jpg", noise_png(1)), ("photo.0.cls", b"2")])
    refused = tdformer("data", "index", tars, out)
    assert refused.returncode == 2
    assert "--ignore-unused" in refused.stderr
    done = tdformer("data", "index", tars, out, "--ignore-unused")
    assert done.returncode == 0, done.stderr
    assert "1 .N.cls, 1 .N.jpg, 23 .json" in done.stdout


def test_a_compressed_shard_in_a_folder_is_not_left_out(tars: Path) -> None:
    (tars / "set-0005.tar.gz").write_bytes(gzip.compress(b"tar"))
    refusal(lambda: find_shards(str(tars)), tars / "set-0005.tar.gz", "is compressed")


@pytest.mark.parametrize("is_empty", [False, True])
def test_shards_whose_whole_folder_is_gone_are_not_damaged(tars: Path, out: Path, is_empty: bool) -> None:
    """A place where nothing is mounted any more is an empty folder."""
    index(tars, out)
    before, read_before = contents(out), everything(open_dataset(out))
    away = tars.rename(tars.with_name("away"))
    if is_empty:
        tars.mkdir()
    for action in (lambda: open_dataset(out), lambda: verify_dataset(out, VerifyOptions(patience=NO_PATIENCE))):
        with pytest.raises(UnavailableError, match=r"set-0000\.tar cannot be read now \(No such file"):
            action()
    if is_empty:
        tars.rmdir()
    away.rename(tars)
    assert everything(open_dataset(out)) == read_before
    assert contents(out) == before


def test_a_place_that_does_not_exist_is_called_so(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("nowhere", f"{tmp_path}/nowhere", "nowhere/set.tar"):
        assert refusal(lambda text=text: find_shards(text), f"{text} does not exist; give a folder of .tar files").count("exist") == 1


# --- classes -----------------------------------------------------------------------------------------------


def test_classes_get_the_names_of_a_file(tars: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\ufefftench, Tinca\r\ncrane\ncrane\nkite\n\n", encoding="utf-8")
    names = read_class_names(tmp_path / "classes.txt")
    assert names == ["tench, Tinca", "crane", "crane", "kite"]
    assert index(tars, out, names).classes == 4
    assert open_dataset(out).classes == names


def test_a_label_that_no_class_has_is_named(tars: Path, out: Path) -> None:
    refusal(lambda: index(tars, out, ["a", "b"]), "sample n002_2 in", tars / NAMES[0], "label 2", "names 2")


@pytest.mark.parametrize(("text", "says"), [("", "line 1"), ("a\n\nb\n", "line 2"), ("\xff", "no UTF-8")])
def test_a_file_that_names_no_classes_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "classes.txt").write_text(text, encoding="latin-1")
    refusal(lambda: read_class_names(tmp_path / "classes.txt"), tmp_path / "classes.txt", says)
    refusal(lambda: read_class_names(tmp_path), "cannot be read")


# --- where it is written -----------------------------------------------------------------------------------


def test_what_is_written_lies_apart_from_the_shards(tars: Path, tmp_path: Path) -> None:
    """Messages may advise to remove OUT. If the shards were in it, that would destroy them."""
    (tmp_path / "linked").symlink_to(tars)
    (tmp_path / "links").mkdir()
    for name in NAMES:
        (tmp_path / "links" / name).symlink_to(tars / name)
    before = contents(tmp_path)
    for text, folder in [
        *((str(tars), folder) for folder in (tars, tars / "in", tmp_path, tmp_path.parent, tmp_path / "linked", tars / ".." / "tars")),
        (str(tmp_path / "links"), tars),
        (f"file://{tars}/{NOTATION}", tars / "in"),
    ]:
        refusal(lambda text=text, folder=folder: index(text, folder), folder, "choose another folder")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["other.tar", "shard-000000.tar", ".hidden"])
def test_a_folder_that_holds_something_is_refused(tars: Path, out: Path, name: str) -> None:
    out.mkdir()
    (out / name).write_text("precious")
    refusal(lambda: index(tars, out), out, name, "choose a new folder")
    refusal(lambda: preview_indexing(find_shards(str(tars)), out), out, name)
    assert contents(out) == {name: b"precious"}


def test_a_set_that_is_there_is_left_alone(tars: Path, out: Path, tmp_path: Path) -> None:
    shards = find_shards(str(tars))
    assert preview_indexing(shards, out) == "would be indexed"
    index(tars, out)
    before = contents(out)
    assert preview_indexing(shards, out) == "already there"
    assert index(tars, out) == IndexResult(SAMPLES, CLASSES, resumed=SAMPLES, already_there=True)
    shutil.copytree(tars, tmp_path / "elsewhere")
    for action, difference in [
        (lambda: index(tmp_path / "elsewhere", out), f"lie at {tars}"),
        (lambda: index(tars / "set-{0000..0003}.tar", out), "other shards"),
        (lambda: index(tars, out, ["a", "b", "c"]), "other classes"),
        (lambda: stored(MemorySource([]), out), "another source"),
    ]:
        refusal(action, out, "already holds another data set", difference)
    own = stored(MemorySource([noise_sample(number) for number in range(3)]), tmp_path / "own")
    refusal(lambda: index(tars, own), own, "already holds another data set")
    assert contents(out) == before


# --- interruptions -----------------------------------------------------------------------------------------


class Interruption(Exception):
    pass


def interrupted_after(shards: int) -> Callable[[int], None]:
    seen = 0

    def progress(done: int) -> None:
        nonlocal seen
        seen += done
        if seen >= shards:
            raise Interruption

    return progress


def test_an_interrupted_indexing_goes_on(tars: Path, out: Path, web: Server, tmp_path: Path) -> None:
    text = f"{web.url}/{NOTATION}"
    with pytest.raises(Interruption):
        index(text, out, progress=interrupted_after(2))
    refusal(lambda: open_dataset(out), out, "its indexing was cut short", "give the same `tdformer data index` again")
    assert preview_indexing(find_shards(text), out) == "would go on"
    refusal(lambda: index(tars, out), out, "was begun otherwise", f"shards_at {web.url}")
    refusal(lambda: index(text, out, ["a", "b", "c"]), out, "was begun otherwise", "other classes")
    (out / ".unfinished" / "1-000003.tar").write_bytes(b"what a kill left behind")
    assert index(text, out).resumed == 2 * PER_SHARD
    assert web.requests == dict.fromkeys(NAMES, 1)
    index(text, tmp_path / "at_once")
    assert contents(out) == contents(tmp_path / "at_once")


@pytest.mark.parametrize("change", ["content", "time", "record", "index"])
def test_a_shard_that_changed_since_it_was_read_is_read_again(tars: Path, out: Path, change: str) -> None:
    with pytest.raises(Interruption):
        index(tars, out, progress=interrupted_after(4))
    path, work = tars / NAMES[1], out / ".unfinished"
    if change == "content":
        write_members(path, members_of(path)[:-3])
    elif change == "time":
        os.utime(path, ns=(1, 1))
    else:
        (work / f"part-000001.{'json' if change == 'record' else 'npy'}").write_bytes(b"{")
    assert index(tars, out).resumed == 3 * PER_SHARD
    assert verify_dataset(out, THOROUGH) == []


def test_one_process_at_a_time(tars: Path, out: Path) -> None:
    with working_folder(out, {}):
        refusal(lambda: index(tars, out), out, "another process is writing")


KILLED = "import sys; from tests.unit.test_foreign_shards import *; index(sys.argv[1], Path(sys.argv[2]), processes=2)"


@pytest.mark.slow
def test_a_killed_indexing_goes_on(out: Path, web: Server, tmp_path: Path) -> None:
    for name in NAMES:
        web.answers[name] = [slow]
    command = [sys.executable, "-c", f"if __name__ == '__main__': {KILLED}", f"{web.url}/{NOTATION}", str(out)]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    try:
        while not list(out.glob(".unfinished/part-*.json")):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / MANIFEST).exists()
    assert index(f"{web.url}/{NOTATION}", out).resumed >= PER_SHARD
    index(f"{web.url}/{NOTATION}", tmp_path / "at_once")
    assert contents(out) == contents(tmp_path / "at_once")


# --- damage after indexing ---------------------------------------------------------------------------------


def assert_harmless(text: str, tars: Path, out: Path) -> None:
    """Follow the advice of a message, and check that it repairs the set and that no shard is lost."""
    assert "index it again" in text
    assert "prepare" not in text
    assert f"remove {out} " in text
    assert f"remove {tars}" not in text


def test_a_shard_that_changed_its_size_is_reported(tars: Path, out: Path) -> None:
    index(tars, out)
    write_members(tars / NAMES[2], members_of(tars / NAMES[2]) * 9)
    for action in (lambda: open_dataset(out), lambda: index(tars, out)):
        assert_harmless(refusal(action, tars / NAMES[2], "was changed"), tars, out)
    assert_harmless(verify_dataset(out)[0], tars, out)
    (tars / NAMES[2]).unlink()
    assert_harmless(refusal(lambda: open_dataset(out), tars / NAMES[2], "is missing"), tars, out)


def test_other_damage_is_found_by_verify(tars: Path, out: Path) -> None:
    index(tars, out)
    data, path = open_dataset(out), tars / NAMES[0]
    content = bytearray(path.read_bytes())
    content[int(data.index["offset"][1])] ^= 0xFF
    path.write_bytes(content)
    assert len(verify_dataset(out, VerifyOptions())) == 1  # a set as small as this has all its images decoded
    (changed,) = verify_dataset(out, THOROUGH)
    assert_harmless(changed, tars, out)
    assert f"{path} does not match its SHA-256" in changed
    refusal(lambda: data.read(1), f"sample n001_1 in {path}", "decoded", f"mend or remove it in its shard, remove {out} and index it again")


def test_a_lost_index_is_made_again(tars: Path, out: Path) -> None:
    index(tars, out)
    before, read_before = contents(out), everything(open_dataset(out))
    (file,) = out.glob("index-*.npy")
    file.unlink()
    assert everything(open_dataset(out)) == read_before
    assert contents(out) == before


def test_a_lost_index_of_remote_shards_is_reported(out: Path, web: Server, cache: CacheFolder, tars: Path) -> None:
    index(f"{web.url}/{NOTATION}", out)
    (file,) = out.glob("index-*.npy")
    file.write_bytes(b"")
    assert_harmless(refusal(lambda: open_dataset(out, cache), out, "lacks the index file"), tars, out)


# --- shards at a URL ---------------------------------------------------------------------------------------


def test_a_remote_shard_that_is_missing_is_reported_and_what_was_read_is_kept(tars: Path, out: Path, web: Server) -> None:
    refusal(lambda: index(f"{web.url}/set-{{0000..0005}}.tar", out), f"{web.url}/set-0005.tar", "not found")
    assert len(list(out.glob(".unfinished/part-*.json"))) == 5
    assert list(out.glob(".unfinished/*.tar")) == []


def test_a_download_that_breaks_off_is_tried_again_or_reported(out: Path, web: Server, tars: Path) -> None:
    web.answers[NAMES[0]] = [cut_off]
    refusal(lambda: index(f"{web.url}/{NOTATION}", out), f"{web.url}/{NAMES[0]}", "cannot be read")
    assert web.requests[NAMES[0]] == 3
    web.answers[NAMES[0]] = [cut_off, partial(status, 503), lambda request, data: status(200, request, data)]
    assert index(f"{web.url}/{NOTATION}", out) == IndexResult(SAMPLES, CLASSES, resumed=0)


def test_a_remote_shard_that_changed_since_is_reported(out: Path, web: Server, cache: CacheFolder, tars: Path) -> None:
    index(f"{web.url}/{NOTATION}", out)
    data = open_dataset(out, cache)
    for answer, says in ((damaged, "SHA-256"), (endless, "more than"), (partial(status, 404), "not found")):
        web.answers[NAMES[0]] = [answer]
        text = refusal(lambda: data.read(0), f"{web.url}/{NAMES[0]}", says)
        assert answer is not damaged or "index it again" in text


def test_remote_shards_need_a_cache(out: Path, web: Server) -> None:
    index(f"{web.url}/{NOTATION}", out)
    refusal(lambda: open_dataset(out), web.url, "shard cache")
    refusal(lambda: verify_dataset(out), web.url, out, "verify reads local ones")


def test_a_file_url_is_indexed(tars: Path, out: Path, cache: CacheFolder) -> None:
    index(f"file://{tars}/{NOTATION}", out)
    assert len({key for key, *_ in everything(open_dataset(out, cache))}) == SAMPLES


# --- the manifest ------------------------------------------------------------------------------------------


def test_own_sets_are_written_and_read_as_before(shared_folder: Path) -> None:
    manifest = json.loads((shared_folder / MANIFEST).read_text())
    assert manifest["version"] == 2
    assert "shards_at" not in manifest
    assert read_manifest(shared_folder).shards_at is None


@pytest.mark.parametrize(
    "place", ["pipe:cat /etc/passwd", "memory://x", "tars", "../tars", "", 3, ["/"], "https://me:SECRET@host/x", "http::///x", "\n/x"]
)
def test_a_manifest_cannot_lead_to_what_executes_or_nowhere(tars: Path, out: Path, cache: CacheFolder, place: object) -> None:
    index(tars, out)
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(manifest | {"shards_at": place}))
    assert "SECRET" not in refusal(lambda: open_dataset(out, cache), out / MANIFEST)


def test_a_remote_manifest_cannot_point_elsewhere(tars: Path, out: Path, cache: CacheFolder, web: Server) -> None:
    index(tars, out)
    for path in out.iterdir():
        shutil.copy(path, tars)
    for place in (str(tars), "/etc", web.url, "pipe:cat x"):
        manifest = json.loads((out / MANIFEST).read_text())
        (tars / MANIFEST).write_text(json.dumps(manifest | {"shards_at": place}))
        refusal(lambda: open_dataset(web.url, cache), web.url, "shards_at" if place.startswith("x") else place)
    assert not cache.path.exists()


def test_training_on_shards_that_are_not_indexed_says_how(tars: Path) -> None:
    refusal(lambda: open_dataset(tars), tars, "has no manifest.json", f"tdformer data index {tars} OUT")


# --- the command -------------------------------------------------------------------------------------------


def invoke(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["data", "index", *map(str, arguments), "--processes", "1", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_the_command(tars: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    arguments = (tars / NOTATION, out, "--classes", tmp_path / "classes.txt")
    shown = {"data_set": str(out), "shards": 5, "first": str(tars / NAMES[0]), "last": str(tars / NAMES[4])}
    assert invoke(*arguments, "--dry-run") == {**shown, "state": "would be indexed"}
    assert not out.exists()
    done = {**shown, "samples": SAMPLES, "classes": 4, "samples_per_class": "0 to 8, median 7.5", "empty_classes": ["d"]}
    done["unused_members"] = {"json": SAMPLES}
    assert invoke(*arguments) == {**done, "state": "indexed"}
    assert invoke(*arguments) == {**done, "state": "already there"}
    assert invoke(*arguments, "--dry-run") == {**shown, "state": "already there"}


@pytest.mark.slow
def test_training_on_indexed_shards(tars: Path, out: Path, web: Server, run_config: dict, tmp_path: Path) -> None:
    """Train from a URL, and validate from a folder. Then try the mistakes that a user may make."""
    for text, folder in ((f"{web.url}/{NOTATION}", out), (tars, tmp_path / "val")):
        indexed = tdformer("data", "index", text, folder)
        assert indexed.returncode == 0, indexed.stderr
        assert f"use it: tdformer train CONFIG data.train={folder} (or data.val={folder}) model.num_classes=3" in indexed.stdout
    run_config["data"] |= {"train": str(out), "val": str(tmp_path / "val"), "shard_cache": str(tmp_path / "cache")}
    run_config["training"] |= {"epochs": 1}
    trained = tdformer("train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    assert "shards are kept in" in trained.stdout + trained.stderr
    assert len(list((tmp_path / "cache").glob("*/*"))) >= 5
    write_members(tars / NAMES[0], [("a.jpg", b"")])
    refused = tdformer("data", "index", tars, tmp_path / "again")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"error: sample a in {tars / NAMES[0]} lacks its image")
    assert keys_of(open_dataset(out, CacheFolder(tmp_path / "cache", 10**9)))[0] == "n000_0"
