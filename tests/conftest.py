"""Fixtures that several rooms share. Threads are pinned before any numeric library is loaded."""

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["MONAI_DATA_DIRECTORY"] = os.devnull

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dicom_series
import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real images, or skip with the reason."""
    folder = Path(os.environ.get("RARESCAN_TEST_DATA", "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"real images are not at {folder} (set RARESCAN_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of one Prefect server for all commands of the session."""
    from rarescan.flows.server import prefect_server

    with prefect_server(tmp_path_factory.mktemp("prefect")) as api:
        yield api


@pytest.fixture(scope="session")
def make_head() -> Callable[..., Any]:
    """Return the maker of a small volume, shape (slices, rows, columns)."""
    return dicom_series.head


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Any]:
    """Return the maker of one slice's data set."""
    return dicom_series.dataset


@pytest.fixture(scope="session")
def save_dataset() -> Callable[..., None]:
    """Return the writer of a data set in any transfer syntax."""
    return dicom_series.save


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest file first, so that two workers end at the same time."""
    items.sort(key=lambda item: "whole_way" not in item.path.parts)
