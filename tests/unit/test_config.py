"""Configurations: what is refused, and in which words; what is written is what is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tdformer.config.dotted_keys import differences, flatten
from tdformer.config.study import load_study
from tdformer.config.yaml_io import ConfigError, dump_config, load_config, read_yaml
from tests.conftest import REPOSITORY

MINIMAL = {"name": "x", "data": {"train": "a", "val": "b"}}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return path


STUDIES = {path for path in REPOSITORY.glob("configs/studies/*.yaml") if "settings:" in path.read_text()}


@pytest.mark.parametrize("path", sorted(STUDIES), ids=lambda path: path.stem)
def test_every_shipped_study_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    study, configs = load_study(path)
    assert list(configs) == list(study.settings)
    assert len(list(study.runs())) == len(study.settings) * len(study.seeds)


RUNS = set(REPOSITORY.glob("configs/**/*.yaml")) - set(REPOSITORY.glob("configs/clusters/*")) - STUDIES


@pytest.mark.parametrize("path", sorted(RUNS), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid_and_says_what_it_is_for(path: Path) -> None:
    load_config(path)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(line.split()[1:2] == ["run"] for line in head), "a configuration opens with its command"


def test_the_resolved_run_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(written(tmp_path), ["training.epochs=7", "model.feedback=null", "optimizer.base_lr=2e-5"])
    assert (config.training.epochs, config.model.feedback, config.optimizer.base_lr) == (7, None, 2e-5)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_config(config))
    assert load_config(resolved) == config


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("training.epoch=3", r"training\.epoch: unknown key; did you mean epochs\? \(allowed: epochs, global_batch"),
        ("trainin.epochs=3", r"trainin: unknown key; did you mean training\?"),
        ("model.feedback.klamp=1", r"model\.feedback\.klamp: unknown key; did you mean clamp\?"),
        ("training.epochs=many", r"training\.epochs: got 'many', allowed is valid integer"),
        ("training.epochs=0", r"training\.epochs: got 0, allowed is greater than or equal to 1"),
        ("training.precision=fp8", r"training\.precision: got 'fp8', allowed is 'fp32', 'bf16' or 'fp16'"),
        ("training.communication_dtype=bf16", r"communication_dtype: bf16 needs reduction: fast, got reduction: auto; exact sends"),
        ("optimizer={schedule: epoch, warmup_epochs: 0.5}", r"warmup_epochs must be a whole number with schedule: epoch, got 0\.5"),
        ("optimizer.cooldown_epochs=200", r"cooldown_epochs must be less than training\.epochs, which counts them, got 200 and 200"),
        ("training={loss: bce, bce_threshold: 0.2}", r"label_smoothing \(0\.1\) would do nothing; set it to 0"),
        ("training.tet_share=0.2", r"tet_share is for loss: tet, got loss: cross_entropy"),
        ("training.bce_threshold=0.2", r"bce_threshold is for loss: bce, got loss: cross_entropy"),
        ("data.augment={auto_augment: rand-m9, color_jitter: 0.4}", r"color_jitter has no effect beside auto_augment \(rand-m9\)"),
        ("data.augment.mix_off_epoch=20", r"mix_off_epoch is 20, and neither mixup nor cutmix is on"),
        ("data.augment.repeats=3", r"global_batch must be a multiple of data\.augment\.repeats, got 512 and 3"),
        ("model.segments=3", r"model: time_steps must be a multiple of segments, got 4 time steps and 3 segments"),
        ("model.feedback.blocks=[7]", r"feedback\.blocks must lie within 0 to 6 .*got \[7\]"),
        ("model.feedback.clamp=[2, 1]", r"clamp must be \(lower, upper\)"),
        ("model.loss_weights=[0.5, 0.4]", r"loss_weights must be 2 numbers \(one per segment\) that sum to 1"),
        ("model.backbone.num_heads=7", r"narrowest stage must be a multiple of num_heads, got 768/4 = 192 and 7 heads"),
        ("model.backbone.family=resnet", r"family: got 'resnet', allowed is 'qkformer', 'spikformer' or 'sdt'"),
        ("model.backbone.family=sdt", r"depths must be 1 number\(s\), the blocks per stage of a sdt \(imagenet\), got \[1, 2, 7\]"),
        ("model.backbone={family: spikformer, variant: dvs, depths: [2]}", r"spikformer has the variants imagenet and cifar, not dvs"),
        (
            "model.backbone={family: sdt, variant: dvs, depths: [2]}",
            r"sdt has .* imagenet and cifar, not dvs; .* events have pooling and erode",
        ),
        ("model.backbone.erode=true", r"erode is a trait of sdt's public code, got family qkformer"),
        ("model.backbone={family: sdt, depths: [2], samples_share_projection: true}", r"samples_share_projection is a trait of qkformer"),
        ("model.backbone={family: sdt, depths: [2], pooling: 0011}", r"pooling must stand in quotes"),
        ("model.backbone={family: sdt, depths: [2], pooling: '011'}", r"pooling"),
        ("model.backbone={family: qkformer, pooling: '0011'}", r"pooling is for spikformer and sdt"),
        ("model.backbone.in_channels=4", r"in_channels must be 3 \(RGB images\) or 2 \(events\), got 4"),
        ("data.augment.crop_scale=[0.5, 0.1]", r"crop_scale must be \(lower, upper\)"),
        ("model.feedback.blocks=[]", r"blocks must name at least one block, and each once, got \[\]"),
        ("model.feedback.control=cm4", r"control: got 'cm4', allowed is 'cm1', 'cm2' or 'cm3'"),
        ("training.recompute=blocks", r"recompute: got 'blocks', allowed is 'none', 'segment', 'block' or 'block_segment'"),
        ("model.backbone.embed_dims=100", r"embed_dims must be a multiple of 8"),
        ("data.image_size=100", r"data\.image_size must be a multiple of 16 .*got 100"),
        ("training.global_batch=100", r"global_batch must be a multiple of training\.micro_batch x ranks, got 100 .* 64 or 128 would fit"),
        ("training.micro_batch=1024", r"global_batch must be a multiple of .* 1024 or 2048 would fit"),
        ("optimizer.base_lr=.inf", r"optimizer\.base_lr: got inf, allowed is finite number"),
        ("data.std=[0, 1, 1]", r"data\.std\.0: got 0, allowed is greater than 0"),
        ("training.epochs=2020-13-45", r"is not a valid YAML value"),
        ("seed=18446744073709551616", r"seed: got 18446744073709551616"),
        ("training.global_batch=1000000000001", r"global_batch must be a multiple"),
        ("epochs", r"override 'epochs' is not of the form section\.key=value"),
        ("name.first=x", r"override 'name\.first=x': name is a value, not a section"),
        ("training.epochs=[1", r"'\[1' is not a valid YAML value"),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_its_path_and_what_is_allowed(tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(written(tmp_path), [override])


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path), ["training.epochs=0", "seed=-1", "data.mean=3"])
    assert all(key in str(caught.value) for key in ("training.epochs", "seed", "data.mean"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: [", "not valid YAML at line"),
        ("- a list", "must hold sections"),
        ("name: a\nname: b\n", "the key name is given twice"),
        ("name: x\n", "data: this key is required"),
        ("name: ../x\ndata: {train: a, val: b}\n", "name: got '../x', allowed is"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_differences_name_the_keys(tmp_path: Path) -> None:
    old, new = load_config(written(tmp_path)), load_config(written(tmp_path), ["seed=4", "model.feedback=null"])
    assert "seed: 0 -> 4" in differences(old, new)
    assert all(line.startswith(("seed:", "model.feedback")) for line in differences(old, new))
    assert flatten(old)["training.global_batch"] == 512


def test_text_with_colons_is_text(tmp_path: Path) -> None:
    """YAML 1.1 reads 24:00:00 as 86400: a day of a job would become 86,400 minutes."""
    path = tmp_path / "x.yaml"
    path.write_text("time: 24:00:00\nrate: 2e-5\ncount: 1_000\nmask: 0x1f\nsmall: -.5\nmost: .inf\n")
    assert read_yaml(path) == {"time": "24:00:00", "rate": 2e-5, "count": 1000, "mask": 31, "small": -0.5, "most": float("inf")}
