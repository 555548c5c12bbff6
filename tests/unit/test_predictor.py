"""Prediction: single images are seen as evaluation sees them, and what cannot be read is named."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tdformer
from data_pipelines.config import DataConfig
from data_pipelines.errors import DataError, UserError
from data_pipelines.loading.dataloader import evaluation_batches
from data_pipelines.loading.open_dataset import open_dataset
from tdformer.config import ModelConfig
from tdformer.inference.predictor import Predictor
from tdformer.models.pretrained import write_weights
from tdformer.models.tdformer import TDFormer
from tests.conftest import tdformer as command
from tests.stripes import StripesSource
from tests.unit.networks import BACKBONES, lively, small
from tests.unit.test_light_imports import loaded_by

CLASSES = ["horizontal", "vertical", "diagonal"]
INPUT = {"image_size": 32, "crop_pct": 0.8, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}


def weights(folder: Path, config: ModelConfig, **origin: object) -> Path:
    """Write the weights of a random network whose neurons fire."""
    torch.manual_seed(0)
    model = lively(TDFormer(config))
    channels = config.backbone.in_channels
    size = (4, config.time_steps, channels, 32, 32)
    model.train()(torch.rand(size[0], *size[2:]) if channels == 3 else torch.randint(0, 3, size).float().transpose(0, 1))
    write_weights(folder, model.state_dict(), config, {"classes": CLASSES, "input": INPUT, "interpolation": "bilinear", **origin})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("predictor") / "weights", small("qkformer-cifar", num_classes=3))


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return tdformer.load(folder, device="cpu")


def png(index: int) -> bytes:
    return StripesSource(11, seed=2)[index].data


def test_logits_are_those_of_evaluation(predictor: Predictor, stripes: Path) -> None:
    data = open_dataset(str(stripes / "val"))
    config = DataConfig(train="unused", val="unused", workers=0, interpolation="bilinear", **INPUT)  # type: ignore[arg-type]
    (batch,) = evaluation_batches(config, data, batch=len(data), rank=0, world_size=1)
    expected = predictor.model.forward_segments(batch.to(torch.device("cpu")).images_BCHW)
    pixels = [np.asarray(data.read(sample)) for sample in range(len(data))]
    images = predictor.images.batch([predictor.tensor(one) for one in pixels], torch.device("cpu"))
    assert torch.equal(predictor.logits(images), expected)
    assert expected.std() > 0
    answers = predictor.predict(pixels, top=2)
    assert [answer.classes[0] for answer in answers] == [CLASSES[index] for index in expected[-1].argmax(1).tolist()]
    assert [answer.by_segment for answer in answers] == [[CLASSES[index] for index in row] for row in expected.argmax(2).T.tolist()]
    assert all(len(answer.probabilities) == 2 and sum(answer.probabilities) <= 1 + 1e-6 for answer in answers)


def test_an_image_may_come_in_any_form(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    image = Image.open(io.BytesIO(png(0)))
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), png(0), image, image.convert("RGBA"), np.asarray(image.convert("RGB"))]
    answers = predictor.predict(forms)
    assert answers == [answers[0]] * len(forms)
    assert predictor.predict(png(0)) == predictor.predict([png(0)])
    alone = predictor.predict([png(0), png(1), png(2)], batch=1)
    together = predictor.predict([png(0), png(1), png(2)])
    for one, other in zip(alone, together, strict=True):
        assert one.classes == other.classes
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-4)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (b"no image", r"^the image cannot be decoded"),
        (np.zeros((8, 8), np.uint8), r"this network takes RGB images, uint8 \[H, W, 3\], got uint8 \[8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"got uint8 \[8, 8, 4\]"),
        (np.zeros((8, 8, 3)), r"got float64 \[8, 8, 3\]"),
        ("nowhere.png", r"nowhere\.png cannot be read \(No such file or directory\)"),
    ],
)
def test_what_is_no_image_is_named(predictor: Predictor, image: bytes | np.ndarray | str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        predictor.predict([png(0), image])


def test_event_frames_are_answered(tmp_path: Path) -> None:
    config = small(BACKBONES["sdt-cifar"].model_copy(update={"in_channels": 2}), num_classes=3, time_steps=4)
    predictor = tdformer.load(weights(tmp_path / "weights", config), device="cpu")
    frames = np.random.default_rng(0).integers(0, 4, (4, 2, 32, 32), np.uint8)
    np.save(tmp_path / "a.npy", frames)
    logits = predictor.model.forward_segments(torch.from_numpy(frames)[:, None].float())
    assert predictor.predict(tmp_path / "a.npy") == predictor.predict(frames)
    assert predictor.predict(frames)[0].probabilities == pytest.approx(sorted(logits[-1, 0].softmax(0).tolist(), reverse=True))
    with pytest.raises(DataError, match=r"this network takes event frames, counts \[4, 2, H, W\], got uint8 \[3, 2, 8, 8\]"):
        predictor.predict(np.zeros((3, 2, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"takes event frames, .*and this is an image"):
        predictor.predict(png(0))


def test_weights_that_do_not_say_what_they_are_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the weights name 2 classes, and their network has 3; export them again"):
        tdformer.load(weights(tmp_path / "two", small("qkformer-cifar", num_classes=3), classes=["a", "b"]))
    with pytest.raises(UserError, match="does not say which images its network takes"):
        tdformer.load(weights(tmp_path / "none", small("qkformer-cifar", num_classes=3), input=None))


def test_imported_weights_answer_with_numbers(tmp_path: Path) -> None:
    answers = tdformer.load(weights(tmp_path / "weights", small("qkformer-cifar", num_classes=3), classes=None)).predict(png(0))
    assert sorted(answers[0].classes) == ["0", "1", "2"]


@pytest.mark.slow
def test_nothing_of_the_training_system_is_loaded(folder: Path) -> None:
    program = f"import numpy, tdformer\nprint(tdformer.load({str(folder)!r}).predict(numpy.zeros((40, 40, 3), 'uint8'))[0].classes)"
    shown = loaded_by(program)
    assert "deepspeed" not in shown
    assert "mlflow" not in shown
    assert "'horizontal'" in shown


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_answers_the_others_if_one_image_cannot_be_read(
    folder: Path, predictor: Predictor, stripes: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    (images / "deeper").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "deeper/c.png")):
        (images / name).write_bytes(png(index))
    (images / "broken.jpg").write_bytes(b"no image")
    result = command("predict", folder, images, images / "a.png", "--json", "--top", 1, "--batch", 2, "--maps", tmp_path / "maps")
    assert result.returncode == 2
    found = json.loads(result.stdout)
    assert [row["image"] for row in found["predictions"]] == [str(images / name) for name in ("a.png", "b.png", "deeper/c.png", "a.png")]
    assert [row["image"] for row in found["unreadable"]] == [str(images / "broken.jpg")]
    assert "error: 1 of 5 images could not be read" in result.stderr
    for row, answer in zip(found["predictions"], predictor.predict([png(0), png(1), png(2), png(0)], top=1), strict=True):
        assert row["classes"] == answer.classes
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["0000_a.png", "0001_b.png", "0002_c.png", "0003_a.png"]
    with Image.open(tmp_path / "maps" / "0000_a.png") as picture:
        assert picture.width == 3 * 200 + 8
    shown = command("predict", folder, str(images / "*.png"))
    assert shown.returncode == 0
    assert shown.stdout.count(" %, ") == 2 * 2

    of_set = json.loads(command("predict", folder, stripes / "val", "--samples", 3, "--json").stdout)["predictions"]
    data = open_dataset(stripes / "val")
    chosen = [sample * len(data) // 3 for sample in range(3)]
    assert [row["image"] for row in of_set] == [f"{stripes / 'val'}/{data.index.key_of(sample)}" for sample in chosen]
    assert [row["label"] for row in of_set] == [CLASSES[data.index.label_of(sample)] for sample in chosen]

    for arguments, sentence in (
        ([images / "nowhere.png"], "there is no image"),
        ([tmp_path / "maps"], ""),
        ([images / "a.png", "--maps", tmp_path / "maps"], "nothing is overwritten, give another folder to --maps"),
        ([tmp_path / "empty"], "holds no image"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        refused = command("predict", folder, *arguments)
        assert (refused.returncode, sentence in refused.stderr) == (2 if sentence else 0, True)
