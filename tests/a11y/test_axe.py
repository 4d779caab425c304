"""Nothing on our pages stops a reader who cannot see them, use a mouse, or tell colours apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import classifier_table
import numpy as np
import pytest
import utility_table
from run_folder import build_run

from rarescan.classifiers.echo.draw import draw_phases
from rarescan.cohort.contracts import Condition
from rarescan.evaluation import drift, echo_page, monitor, utility_page
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


def test_the_page_of_utility_has_no_serious_barrier(
    tmp_path: Path, look: Callable[..., Any]
) -> None:
    page = utility_page.write_page(utility_table.write_result(tmp_path))
    assert serious(look(page)) == []


@pytest.mark.parametrize("truth", [True, False])
def test_the_page_of_echocardiograms_has_no_serious_barrier(
    tmp_path: Path, look: Callable[..., Any], truth: bool
) -> None:
    (tmp_path / "C1.png").write_bytes(draw_phases([(np.zeros((112, 112), np.uint8),
        np.zeros((2, 112, 112), bool), np.full((2, 2), np.nan))] * 2))  # fmt: skip
    study = {"study_id": "S1", "ef": 55.0, "edv_ml": None, "esv_ml": None, "class": "greyzone",
             "method": "biplane", "flags": ["view_unknown"]}  # fmt: skip
    known = {"view": "a4c", "beats": [{"ed": 0, "es": 2, "ef": 55.0}], "edv_ml": 120.0,
             "esv_ml": 54.0, "la_volume_ml": None, "heart_rate_bpm": 70.0, "n_frames": 4,
             "refused": None, "ef": 55.0}  # fmt: skip
    clips = [{**known, "clip_id": f"C{k}", "flags": ["gaps"] * k} for k in range(2)]
    clips.append({"clip_id": "C3", "refused": "too_few_frames", "flags": []})
    interval = {"mae": [2.0, 1.0, 3.0], "r2": [0.9, None, None]}
    agreement = {"n_persons": 4, "n_clips": 8, "n_without": 1, "clips": interval,
                 "studies": interval, "constant": {}}  # fmt: skip
    figures = {"studies": [study], "clips": clips, "classes": {"greyzone": 1},
               "scheme": {"scheme": "cuts", "normal_from": 60.0, "abnormal_below": 40.0},
               "agreement": agreement if truth else None}  # fmt: skip
    curves = {f"C{k}": ([3.0, 2.0, 1.0, 2.0], 33.0 if k else None) for k in range(2)}
    pictures = {f"C{k}": tmp_path / f"C{k}.png" for k in range(2)}
    page = tmp_path / "echo.html"
    page.write_text(echo_page.write_page(figures, curves, pictures))
    assert serious(look(page)) == []


def test_a_barrier_would_be_found(tmp_path: Path, look: Callable[..., Any]) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<body><img src="data:image/png;base64,"><p style="color:#ddd">hardly seen</p></body>'
    )
    found = {one["id"] for one in look(page)["violations"] if one["impact"] != "minor"}
    assert {"image-alt", "html-has-lang", "color-contrast"} <= found
