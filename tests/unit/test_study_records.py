"""What a study's runs said, kept in files: they stay true for later versions, and are of their study alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from data_pipelines.storage.sealed_json import read_sealed, write_sealed
from tdformer.config import RunConfig
from tdformer.config.study import StudyRun
from tdformer.runs import study_records
from tdformer.runs.study_records import StudyRecord

CONFIG = RunConfig(name="one", data=DataConfig(train="train", val="val"))
NEW_KEYS = ("model.backbone.pooling", "data.augment.mixup")


@pytest.fixture
def planned(tmp_path: Path) -> StudyRun:
    return StudyRun("plain", 0, tmp_path / "plain-seed-0", ())


def kept(planned: StudyRun, folder: Path) -> Path:
    record = StudyRecord(planned.setting, planned.seed, study_records.deciding(CONFIG), {"val/top1": {1: 50.0}}, 0.1)
    return study_records.write(record, folder)


def test_a_record_from_before_a_key_existed_is_of_its_default(planned: StudyRun, tmp_path: Path) -> None:
    path = kept(planned, tmp_path)
    tree = read_sealed(path)
    for key in NEW_KEYS:
        del tree["config"][key]
    write_sealed(path, tree)
    (record,) = study_records.read_all(tmp_path, [planned]).values()
    study_records.check_same(record.config, CONFIG, path)
    other = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"time_steps": 8})})
    with pytest.raises(UserError, match=r"is of another study: model.time_steps is 4 there, and 8 here"):
        study_records.check_same(record.config, other, path)


def test_a_section_that_was_null_gets_no_defaults(planned: StudyRun, tmp_path: Path) -> None:
    path = kept(planned, tmp_path)
    tree = read_sealed(path)
    others = {key: value for key, value in tree["config"].items() if not key.startswith("model.feedback")}
    tree["config"] = {**others, "model.feedback": None}
    write_sealed(path, tree)
    (record,) = study_records.read_all(tmp_path, [planned]).values()
    with pytest.raises(UserError, match=r"is of another study: model.feedback"):
        study_records.check_same(record.config, CONFIG, path)
