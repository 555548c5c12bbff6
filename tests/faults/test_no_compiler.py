"""Fused kernels on a machine that cannot compile them: the run says so once, and trains as with plain ones, to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import write_config
from tests.distributed.starter import tdformer, tdformer_from_scratch


@pytest.mark.slow
def test_without_a_compiler_a_run_takes_the_plain_path(run_config: dict, tmp_path: Path) -> None:
    environment = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "nothing-compiled-before")}
    models = []
    for kernels, start in (("fused", tdformer_from_scratch), ("plain", tdformer)):
        run = tmp_path / kernels
        command = ("train", write_config(run_config, tmp_path), f"training.kernels={kernels}", "training.epochs=1", "--run-dir", run)
        result = start(*command, environment=environment)
        assert result.returncode == 0, result.stderr
        warning = "warning: fused kernels cannot be compiled here, going on with the plain ones, which are slower ("
        assert (result.stdout + result.stderr).count(warning) == (kernels == "fused")
        models.append((run / "checkpoints" / "step-00000003" / "model.safetensors").read_bytes())
    assert models[0] == models[1]
