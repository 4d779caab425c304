"""Nothing on our pages stops a reader who cannot see them, use a mouse, or tell colours apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import classifier_table
import numpy as np
import pytest
from run_folder import build_run

from rarescan.cohort.contracts import Condition
from rarescan.evaluation import drift, monitor
from rarescan.evaluation.classifier_page import write_page
from rarescan.evaluation.drift import APPEARANCE, Look
from rarescan.evaluation.report import write_report
from rarescan.evaluation.spec import MonitorConfig

pytestmark = [pytest.mark.browser, pytest.mark.long]


def serious(found: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    assert found["passes"] > 20, "axe-core looked at the page"
    return [
        (one["id"], one["help"], one["nodes"])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("until", ["prepare", "refuse", "retrain"])
def test_the_report_has_no_serious_barrier(
    tmp_path: Path, look: Callable[..., Any], until: str
) -> None:
    run = build_run(tmp_path / "run", until=until, n_persons=20)
    readers = None
    if until == "retrain":
        (run / "decision" / "MODEL_CARD.md").write_text("# card")
        rows = [f"SYN{i:04d}-1,A,{50 + i},odd\nP{i:04d}-1,A,{40 + i},\n" for i in range(9)]
        readers = run / "readers.csv"
        readers.write_text("scan_id,reader,real_or_synthetic,remark\n" + "".join(rows) + "x,A,1,\n")
    assert serious(look(write_report(run, readers))) == []


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_the_monitors_page_has_no_serious_barrier(
    tmp_path: Path, look: Callable[..., Any], shift: float
) -> None:
    random = np.random.default_rng(0)
    known, new = (
        Look(
            conditions=tuple(Condition(diagnosis="control", age_years=60.0 + i) for i in range(n)),
            appearance=random.normal(moved, 1, (n, len(APPEARANCE))),
            quality=None,
        )
        for n, moved in ((60, 0.0), (20, shift))
    )
    extra = {"champion": {"reason": "The run has no champion."}, "phantom": True, "ids": {"a": "b"}}
    monitor.write_page(tmp_path, drift.drift(known, new, MonitorConfig()) | extra)
    assert serious(look(tmp_path / monitor.PAGE)) == []


@pytest.mark.parametrize("labelled", [True, False])
def test_the_classifiers_page_has_no_serious_barrier(
    tmp_path: Path, look: Callable[..., Any], labelled: bool
) -> None:
    folder = classifier_table.write_folder(tmp_path, labelled=labelled)
    assert serious(look(write_page(folder))) == []


def test_a_barrier_would_be_found(tmp_path: Path, look: Callable[..., Any]) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<body><img src="data:image/png;base64,"><p style="color:#ddd">hardly seen</p></body>'
    )
    found = {one["id"] for one in look(page)["violations"] if one["impact"] != "minor"}
    assert {"image-alt", "html-has-lang", "color-contrast"} <= found
