"""Provides one cluster for all tests of this folder, and a way to submit runs to it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import HOST, Cluster
from tests.slurm.jobs import Jobs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start the cluster. If that fails, the tests fail and are not skipped, because nothing else shows what they show."""
    assert socket.gethostbyname(HOST), "the name of this host must be known to the network"
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def jobs(cluster: Cluster, stripes: Path, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(cluster, stripes, empty_mlflow, tmp_path_factory.mktemp("jobs"))
