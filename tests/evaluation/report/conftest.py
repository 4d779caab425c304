"""Run folders for the report's tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folder import build_run

from rarescan.evaluation import charts, figures


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return `build_run`, bound to a folder of this test."""

    def make(name: str = "demo", **options: Any) -> Path:
        return build_run(tmp_path / name, **options)

    return make


@pytest.fixture
def quick_run(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Return `make_run` for tests of a page's words: drawings are decided on but not drawn."""
    for name in vars(charts).copy():
        if name.endswith("_plot") or name == "forest_grid":
            monkeypatch.setattr(charts, name, lambda *_, **__: "<svg></svg>")
    monkeypatch.setattr(charts, "_svg", lambda *_: "<svg></svg>")
    monkeypatch.setattr(figures, "webp", lambda picture: "data:image/webp;base64,AAAA")
    return make_run


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with every part; tests only read it, or write the report into it."""
    return build_run(tmp_path_factory.mktemp("runs") / "demo")
