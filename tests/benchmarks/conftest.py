"""The benchmarks are scripts beside the package: their directory is put on the path."""

from pathlib import Path

import pytest


@pytest.fixture(scope="package", autouse=True)
def benchmarks_on_the_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield
