import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from token_search import found

from rarescan.cohort.store import open_cohort, open_volumes, read_events
from rarescan.files import read_json, sha256_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Command = Callable[..., subprocess.CompletedProcess[str]]


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_everybody_whom_the_truth_calls_sound_is_in_the_cohort_and_nobody_else(
    play: Path,
) -> None:
    import pyarrow.parquet as pq

    truth = pq.read_table(play / "play" / "phantom" / "truth" / "persons.parquet").to_pylist()
    used = [row for row in truth if row["expected"] == "used"]
    cohort = open_cohort(play / "play" / "cohort")
    assert len({scan.person_id for scan in cohort.scans}) == len(used)
    assert Counter(s.condition.diagnosis for s in cohort.scans) == {"bvFTD": 28, "control": 52}
    codes = {event["code"] for event in read_events(cohort.root)}
    assert {"LOCALIZER", "MISSING_SLICE", "PHANTOM", "NOT_T1"} <= codes


def test_prepared_volumes_lie_on_the_grid_between_0_and_1_with_0_outside_the_brain(
    play: Path,
) -> None:
    cohort = open_cohort(play / "play" / "prepared")
    volumes = open_volumes(cohort)
    assert volumes.shape == (len(cohort.scans), 20, 24, 20)
    assert volumes.min() == 0
    assert 0.9 < volumes.max() <= 1
    shares = (volumes > 0).mean(axis=(1, 2, 3))
    assert 0.2 < shares.min() <= shares.max() < 0.55
    assert set(cohort.partition.values()) == {"train", "validation", "test"}


def test_the_sidecar_of_a_synthetic_scan_says_what_it_is(play: Path) -> None:
    sidecar = read_json(next((play / "play" / "synthetic").glob("sub-*/anat/*.json")))
    assert sidecar["Synthetic"] is True
    assert sidecar["SkullStripped"] is True
    text = json.dumps(sidecar)
    assert "inside_controller" in text
    assert "models:/rarescan-generator/1" in text


@pytest.mark.long
def test_the_same_seed_gives_the_same_batch_byte_for_byte_with_another_number_of_workers(
    play: Path, command: Command
) -> None:
    line = (
        "rarescan generate play/prepared play/again --model models:/rarescan-generator/1 "
        "--n 12 --seed 7 --workers 1"
    )
    done = command(line, play)
    assert done.returncode == 0, done.stderr
    first, again = hashes(play / "play" / "synthetic"), hashes(play / "play" / "again")
    # Only the two recipes differ: the first batch names the decision's folder as its input.
    assert {k for k in first if first[k] != again.get(k)} <= {
        "recipe.json",
        "batch.json",
    } | {k for k in first if k.startswith("rarescan/cohort")} | {
        k for k in first if k.endswith((".json", ".md", ".tsv"))
    }
    images = [name for name in first if name.endswith(".nii.gz")]
    assert len(images) == 12
    assert [first[name] for name in images] == [again[name] for name in images]


def test_repeating_a_finished_verb_changes_nothing_and_is_quick(
    play: Path, command: Command
) -> None:
    before = hashes(play / "play" / "prepared")
    line = next(
        text.removeprefix("$ ")
        for text in (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text().splitlines()
        if "rarescan prepare" in text and text.startswith("$ ")
    )
    assert command(line, play).returncode == 0
    assert hashes(play / "play" / "prepared") == before


def test_other_settings_do_not_overwrite_a_result_and_the_changed_key_is_named(
    play: Path, command: Command
) -> None:
    done = command("rarescan prepare play/cohort play/prepared --spacing-mm 4", play)
    assert done.returncode == 4
    assert "spacing_mm" in done.stderr
    assert "--overwrite" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_champion_loads_in_a_clean_process_and_gives_the_batchs_own_volume(
    play: Path,
) -> None:
    batch = open_cohort(play / "play" / "synthetic")
    condition = batch.scans[3].condition
    code = f"""
import mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri("sqlite:///{play}/runs/mlflow/mlflow.db")
model = mlflow.pyfunc.load_model("models:/rarescan-generator@champion")
table = pd.DataFrame([{{"diagnosis": "{condition.diagnosis}", "sex": "{condition.sex}",
                       "age_years": {condition.age_years!r}, "site": "{condition.site}"}}])
np.save("one.npy", model.predict(table, params={{"seed": 7, "first_index": 3}}))
"""
    environment = {"PATH": "", "HOME": str(play), "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=play,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    one = np.load(play / "one.npy")
    assert one.shape == (1, 20, 24, 20)
    np.testing.assert_array_equal(one[0], open_volumes(batch)[3])


def test_the_model_store_holds_no_pickle_and_not_the_place_of_the_code(play: Path) -> None:
    store = play / "runs" / "mlflow" / "artifacts"
    names = {path.suffix for path in store.rglob("*") if path.is_file()}
    assert not names & {".pkl", ".pickle", ".pt", ".pth"}
    card = next(store.rglob("MLmodel")).read_text()
    assert str(Path(__file__).parents[2]) not in card
    assert re.search(r"model_code_path: \S*/generator\.py", card)


def test_a_synthetic_scan_is_traced_back_to_the_pseudonymous_series(
    play: Path, command: Command
) -> None:
    image = next((play / "play" / "synthetic").glob("sub-*/anat/*.nii.gz"))
    chain = json.loads(command(f"rarescan trace {image} --json", play).stdout)
    steps = [link["step"] for link in chain]
    assert steps[0] == "generate"
    assert "ingest" in steps
    assert chain[0]["detail"]["person_id"].startswith("SYN")


def test_the_arms_and_the_gain_are_said_with_intervals(play: Path) -> None:
    gain = read_json(play / "play" / "classifiers" / "gain.json")
    assert set(gain["arms"]) == {
        "real",
        "oversampled",
        "classical",
        "classical_synthetic",
        "placebo",
    }
    for scores in gain["arms"].values():
        for score in scores.values():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert gain["gain"]["low"] < gain["gain"]["high"]
    assert gain["verdict"] in ("use", "do_not_use", "undecided")


@pytest.mark.long
def test_no_token_of_the_tutorials_persons_is_in_its_results_logs_and_stores(
    play: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokens: set[str] = set()
    for series in sorted((play / "play/phantom/export/DICOM").glob("*/*")):
        ds = pydicom.dcmread(next(series.iterdir()), stop_before_pixels=True)
        words = ["AccessionNumber", "PatientAddress", "PatientTelephoneNumbers", "StudyInstanceUID",
                 "SeriesInstanceUID", "FrameOfReferenceUID", "InstitutionName", "StationName",
                 "DeviceSerialNumber", "ReferringPhysicianName", "PatientName"]  # fmt: skip
        values = [str(ds.get(word, "")) for word in words]
        # Short words and bare numbers stand by chance in voxels and figures; those of the planted
        # export, above, do not.
        tokens |= {value for value in values if len(value) >= 8 and not value.isdigit()}
    assert len(tokens) > 200
    places = [p for p in (play / "play").iterdir() if p.is_dir() and p.name != "phantom"]
    assert len(places) >= 6
    assert list((play / "runs/mlflow").glob("*.db"))
    stores = [play / "runs", *tmp_path_factory.getbasetemp().glob("prefect*")]
    assert found(sorted(tokens), [*places, *stores]) == {}


@pytest.mark.parametrize("kind", ["cohort", "synthetic"])
def test_what_is_written_is_valid_bids(play: Path, kind: str) -> None:
    validator = Path(sys.executable).parent / "bids-validator-deno"
    done = subprocess.run(
        [str(validator), str(play / "play" / kind), "--format", "json"],
        capture_output=True,
        text=True,
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue["code"] for issue in issues if issue["severity"] == "error"] == []


@pytest.mark.long
def test_an_unreachable_registry_ends_with_5_within_seconds(play: Path, command: Command) -> None:
    start = time.monotonic()
    done = command(
        "rarescan generate play/prepared play/none",
        play,
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )
    assert done.returncode == 5
    assert "MLflow server does not answer" in done.stderr
    assert not (play / "play" / "none").exists()
    assert time.monotonic() - start < 120
