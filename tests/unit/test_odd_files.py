"""Tests odd names, kinds of files and damages that once caused a traceback, a hang or a loss of data."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.images import decode_image
from data_pipelines.formats.index import Index, row_type
from data_pipelines.formats.manifest import Format
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.journal import LEFT_OUT
from data_pipelines.prepare.options import Encoding, PrepareOptions
from data_pipelines.prepare.prepare_dataset import prepare_dataset
from data_pipelines.prepare.verify_dataset import verify_dataset
from data_pipelines.sources.folders import ImageFolderSource
from data_pipelines.sources.lists import ListSource
from launch.cli import app
from tests.conftest import REPOSITORY, StripesSource, stored
from tests.unit.conftest import noise_png


def test_a_palette_png_with_a_damaged_palette_is_refused() -> None:
    png = io.BytesIO()
    Image.new("P", (4, 4)).save(png, "PNG", transparency=0)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_image(png.getvalue().replace(b"PLTE", b"PLTF"))


@pytest.mark.parametrize("format", ["wds", "ffcv"])
def test_names_that_no_key_can_have_are_left_out_and_listed_and_unicode_blanks_are_kept(tmp_path: Path, format: Format) -> None:
    folder = tmp_path / "tree" / "a"
    folder.mkdir(parents=True)
    for name in (b"3.00\xe2\x80\xafPM.png", b"line\nbreak.png", b"bytes\xff.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(noise_png(1))
    done = prepare_dataset(ImageFolderSource(tmp_path / "tree"), tmp_path / "set", PrepareOptions(Encoding(format)))
    assert (done.samples, done.left_out) == (1, 2)
    assert open_dataset(tmp_path / "set").index["key"].tolist() == ["a/3_00\u202fPM".encode()]
    assert (tmp_path / "set" / LEFT_OUT).read_text().count("no key can") == 2


def test_a_pipe_in_a_list_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "train.txt").write_text("x.png a\n" + "y" * 300 + ".png a\n")
    source = ListSource(tmp_path / "train.txt")
    source.fingerprint()
    with pytest.raises(DataError, match="it is no file"):
        source[0]


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo])
def test_what_is_no_file_in_a_shards_place_is_named(tmp_path: Path, make: object) -> None:
    folder = stored(StripesSource(3, seed=1), tmp_path / "set")
    (folder / "shard-000000.tar").unlink()
    make(folder / "shard-000000.tar")  # type: ignore[operator]
    with pytest.raises(DataError, match=r"shard-000000.tar is no file"):
        open_dataset(folder)
    assert "is no file" in verify_dataset(folder)[0]


@pytest.mark.parametrize("column", ["shard", "offset", "size", "label", "key"])
@pytest.mark.parametrize("kind", ["<f8", "V5", "M8[s]"])
def test_an_index_of_other_types_is_not_believed(tmp_path: Path, column: str, kind: str) -> None:
    types = [(name, kind if name == column else dtype) for name, dtype in row_type(9).descr]
    np.save(tmp_path / "index.npy", np.zeros(3, types))
    with pytest.raises(ValueError, match="holds no index"):
        Index.load(tmp_path / "index.npy")


def test_nothing_is_written_among_the_files_that_it_is_made_from(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "1.png").write_bytes(noise_png(1))
    for out in (tmp_path, tmp_path / "val" / "new"):
        result = CliRunner().invoke(app, ["data", "prepare", str(tmp_path), str(out)])
        assert isinstance(result.exception, UserError)
        assert "choose another folder to write to" in str(result.exception)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["a"]


def test_a_users_own_list_of_left_out_files_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / LEFT_OUT).write_text("precious")
    with pytest.raises(DataError, match="was not written here"):
        stored(StripesSource(3, seed=1), tmp_path)
    assert (tmp_path / LEFT_OUT).read_text() == "precious"


def test_a_folder_whose_name_holds_a_colon_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(StripesSource(3, seed=1), tmp_path / "ab:cd")
    monkeypatch.chdir(tmp_path)
    assert verify_dataset(Path("ab:cd")) == []


@pytest.mark.slow
def test_writers_end_with_their_owner_even_while_nobody_asks_for_its_exit_code(tmp_path: Path) -> None:
    """A supervisor may read the pipes of a killed process before its exit code. Writers that wait for that would block it."""
    program = f"""
from pathlib import Path
from data_pipelines.prepare.options import PrepareOptions
from data_pipelines.prepare.prepare_dataset import prepare_dataset
from tests.conftest import StripesSource
if __name__ == "__main__":
    prepare_dataset(StripesSource(100_000, seed=1), Path({str(tmp_path / "set")!r}), PrepareOptions(samples_per_shard=20), processes=2)
"""
    (tmp_path / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, tmp_path / "program.py"], cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE) as process:
        while len(list((tmp_path / "set").glob("shard-*.tar"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs([child for child in family if "resource_tracker" not in " ".join(child.cmdline())], timeout=20)
        assert alive == []
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
