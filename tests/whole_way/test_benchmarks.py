"""The benchmark of the generators runs at its smallest, goes on, and says what it found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "generative"
SMALLEST = ("--spacing-mm", "8", "--patients", "8", "--budget", "1", "--steps", "10")
FEW = ("--samples", "6", "--tutorial-samples", "4", "--slow-samples", "4")
ROWS = ("real", "diffusion", "pca-gaussian", "tutorial-rflow-30")


def run(program: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(program), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    run(BENCHMARK, str(folder), *SMALLEST, *FEW, "--rows", *ROWS)
    return folder


@pytest.mark.long
def test_every_row_has_its_cost_its_distance_with_interval_and_its_gates(folder: Path) -> None:
    rows = json.loads((folder / "phantom.json").read_text())["rows"]

    assert tuple(rows) == ROWS
    for row in rows.values():
        assert row["mmd"]["low"] <= row["mmd"]["value"] <= row["mmd"]["high"]
        assert {"spread", "high_frequency", "copies"} <= set(row["gates"])
    assert rows["tutorial-rflow-30"]["seconds_each"] > rows["diffusion"]["seconds_each"] > 0


@pytest.mark.long
def test_an_untrained_tutorial_is_farther_from_real_persons_than_a_gaussian(folder: Path) -> None:
    rows = json.loads((folder / "phantom.json").read_text())["rows"]

    assert rows["tutorial-rflow-30"]["mmd"]["low"] > rows["pca-gaussian"]["mmd"]["high"]


@pytest.mark.long
def test_families_have_a_place_against_the_gaussian(folder: Path) -> None:
    places = json.loads((folder / "places.json").read_text())

    assert set(places["families"]) == {"diffusion"}
    assert places["families"]["diffusion"]["place"] in ("better", "no better", "worse")
    assert places["about"]["patients"] >= 8


@pytest.mark.long
def test_a_repeated_command_prints_the_same_and_trains_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("cost.json")}

    said = run(BENCHMARK, str(folder), *SMALLEST, *FEW, "--rows", *ROWS)

    assert "holds" in said
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("cost.json")}


@pytest.mark.long
def test_without_a_gpu_the_gpu_benchmark_says_so_in_one_line(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")

    said = run(BENCHMARK / "gpu.py", str(tmp_path / "gpu"))

    assert said.splitlines() == ["bench-gpu: skipped, this machine has no GPU that torch can use"]
    assert not (tmp_path / "gpu").exists()
