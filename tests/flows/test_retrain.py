"""`retrain` with a program of others, and with a site that nothing has seen."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rarescan.classifiers.arm_scans import require_fitting
from rarescan.classifiers.held_out import site_partition
from rarescan.cohort.contracts import Condition, Part, Question, Scan, brain_grid
from rarescan.cohort.store import create_volumes, open_cohort, open_volumes, write_cohort
from rarescan.configs.schema import RunConfig, load_config
from rarescan.errors import ChangedRecipeError, InputError, SettingError
from rarescan.files import Recipe, read_json, require_recipe, run_step, write_json
from rarescan.flows import records
from rarescan.flows.erase import erase_person
from rarescan.flows.retrain import hold_out, retrain
from rarescan.registry.spec import RegistryConfig

TRAIN = """
import csv, sys
train, test, scores = sys.argv[1:4]
sites = sorted({row["site"] for row in csv.DictReader(open(train))})
with open(scores, "w") as out:
    print("scan_id,score", file=out)
    for place, row in enumerate(csv.DictReader(open(test))):
        print(row["scan_id"], place / 1000, sep=",", file=out)
print(*sites, "|", *sorted({row["site"] for row in csv.DictReader(open(test))}))
"""


def person(number: int) -> Scan:
    """Return one of 48 persons: every third a patient, the second half from site B."""
    return Scan(
        scan_id=f"PH{number:02d}_01",
        person_id=f"PH{number:02d}",
        origin="phantom",
        condition=Condition(
            diagnosis="control" if number % 3 else "bvFTD", site="A" if number < 24 else "B"
        ),
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return persons of the sites A and B, of both diagnoses, a person's number in each voxel."""
    scans, grid = [person(i) for i in range(48)], brain_grid(8)
    parts: dict[str, Part] = {
        s.person_id: "train" if i % 2 else "test" for i, s in enumerate(scans)
    }

    def build(work: Path) -> None:
        numbers = np.arange(len(scans), dtype=np.float32)[:, None, None, None]
        create_volumes(work, len(scans), grid)[:] = numbers / 100
        write_cohort(work, scans=scans, grid=grid, partition=parts)

    return run_step(
        tmp_path_factory.mktemp("runs") / "prepared", Recipe(step="draw", schema=1), build
    )


@pytest.fixture(scope="module")
def batch(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return four synthetic patients of a generator that was trained on this cohort."""
    cohort = open_cohort(prepared)
    assert cohort.grid is not None
    grid, image = cohort.grid, np.array(open_volumes(cohort)[0])
    scans = [
        Scan(scan_id=f"SYN{i}_01", person_id=f"SYN{i}", origin="synthetic",
             condition=Condition(diagnosis="bvFTD"))
        for i in range(4)
    ]  # fmt: skip

    def build(work: Path) -> None:
        create_volumes(work, len(scans), grid)[:] = image
        write_cohort(work, scans=scans, grid=grid, partition={})
        write_json(work / "batch.json", {"prepared_id": cohort.cohort_id})

    folder = tmp_path_factory.mktemp("batch") / "synthetic"
    return run_step(folder, Recipe(step="generate", schema=1), build)


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keep what the registry would be told."""
    told: list[Any] = []
    monkeypatch.setattr(records, "log_arms", lambda *words: told.append(words))
    return told


def settings(tmp_path: Path, *more: str, text: str = TRAIN) -> RunConfig:
    program = tmp_path / "train.py"
    program.write_text(text)
    words = [sys.executable, "-P", str(program), "{train}", "{test}", "{scores}"]
    given = (f"retrain.command={json.dumps(words)}", "retrain.seeds=1", "workers=1", "device=cpu")
    return load_config(None, [*given, *more])


def test_a_program_is_judged_like_the_network_and_named_by_its_content(
    prepared: Path, batch: Path, tmp_path: Path, logged: list[Any]
) -> None:
    config = settings(tmp_path, 'retrain.arms=["real", "classical_synthetic"]')
    folder = retrain(config, prepared, batch, tmp_path / "classifiers")

    found = read_json(folder / "gain.json")
    assert found["gain"]["n"] == 24
    assert found["verdict"] in ("use", "do_not_use", "undecided")
    assert found["about"] == {
        "classifier": "command", "positive": "bvFTD", "negative": "control", "held_out": "person",
    }  # fmt: skip
    assert str(tmp_path) not in (folder / "recipe.json").read_text().replace(str(folder), "")
    assert len(logged) == 1
    before = (folder / "gain.json").stat().st_mtime_ns
    retrain(config, prepared, batch, folder)
    retrain(settings(tmp_path, 'retrain.arms=["real", "classical_synthetic"]',
                     "retrain.command_minutes=7"), prepared, batch, folder)  # fmt: skip
    assert (folder / "gain.json").stat().st_mtime_ns == before
    other = settings(
        tmp_path, 'retrain.arms=["real", "classical_synthetic"]', text=TRAIN + "# new\n"
    )
    with pytest.raises(ChangedRecipeError, match=r"command\.files"):
        retrain(other, prepared, batch, folder)


def test_a_site_that_training_knows_is_not_called_unseen(prepared: Path, tmp_path: Path) -> None:
    config = settings(tmp_path, "retrain.held_out=site")
    with pytest.raises(InputError, match="rarescan hold-out PREPARED OTHER --site NAME"):
        retrain(config, prepared, None, tmp_path / "classifiers")


def test_with_a_site_held_out_its_persons_test_and_nobody_of_it_trains(
    prepared: Path, batch: Path, tmp_path: Path
) -> None:
    held = hold_out(prepared, tmp_path / "without_b", "B")

    cohort = open_cohort(held)
    sites = {s.person_id: s.condition.site for s in cohort.scans}
    assert {sites[p] for p, part in cohort.partition.items() if part == "test"} == {"B"}
    assert {sites[p] for p, part in cohort.partition.items() if part != "test"} == {"A"}
    assert {p for p, site in sites.items() if site == "B"} <= set(cohort.partition)
    tested = {p for p, part in open_cohort(prepared).partition.items() if part == "test"}
    assert not {p for p in tested if sites[p] == "A"} & set(cohort.partition)
    np.testing.assert_array_equal(open_volumes(cohort), open_volumes(open_cohort(prepared)))
    with pytest.raises(InputError, match="trained on another cohort"):
        require_fitting(cohort, batch, Question())

    config = settings(tmp_path, "retrain.held_out=site", 'retrain.arms=["real"]')
    folder = retrain(config, held, None, tmp_path / "classifiers")
    assert read_json(folder / "gain.json")["sentence"].startswith("At sites that nothing here")
    assert (folder / "networks" / "real-0" / "said.txt").read_text() == "A | B\n"
    table = pd.read_parquet(folder / "predictions.parquet")
    assert {sites[p] for p in table.person_id} == {"B"}


def test_who_may_be_a_person_of_the_site_under_another_name_does_not_train(
    prepared: Path,
) -> None:
    cohort = open_cohort(prepared)
    scans = tuple(
        replace(s, flags=("perhaps_PH03",)) if s.person_id in ("PH03", "PH25", "PH05") else s
        for s in cohort.scans
    )
    partition = site_partition(replace(cohort, scans=scans), "B")
    assert partition["PH25"] == "test"
    assert not {"PH03", "PH05"} & set(partition)
    assert partition["PH07"] == "train"


def test_a_site_that_is_not_there_is_answered_with_those_that_are(
    prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=r"'C'.*Valid: A, B"):
        hold_out(prepared, tmp_path / "x", "C")


def test_another_prepared_cohort_is_another_hold_out(prepared: Path, tmp_path: Path) -> None:
    first, second = (require_recipe(hold_out(prepared, tmp_path / site, site)).id for site in "AB")
    assert first != second


def test_a_person_who_is_erased_leaves_a_held_out_cohort_whole(
    prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path / "runs" / "prepared")
    held = hold_out(tmp_path / "runs" / "prepared", tmp_path / "runs" / "a_held", "B")

    erase_person("PH05", tmp_path / "runs", RegistryConfig())

    for folder in (held, tmp_path / "runs" / "prepared"):
        cohort = open_cohort(folder)
        numbers = [round(float(v.max()) * 100) for v in open_volumes(cohort)]
        assert [f"PH{n:02d}" for n in numbers] == [s.person_id for s in cohort.scans]
        assert 5 not in numbers
        assert len(numbers) == 47


@pytest.mark.parametrize(
    ("about", "tag"),
    [
        (("network", "bvFTD", "control", "person"), "helps.small.bvFTD-control.new_persons"),
        (("command", "AD / MCI", "ctrl", "site"), "helps.command.AD _ MCI-ctrl.new_site"),
    ],
)
def test_every_classifier_and_question_has_a_tag_of_its_own(
    about: tuple[str, ...], tag: str
) -> None:
    names = ("classifier", "positive", "negative", "held_out")
    found = records.helps_tag(dict(zip(names, about, strict=True)))
    assert found == tag.replace(".small.", ".network.")


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (['retrain.command=["python", "train.py"]'], "does not say where"),
        (['retrain.command=["a{train}{test}{scores}"]', "retrain.model=m.onnx"], "both set"),
    ],
)
def test_settings_of_programs_are_checked_before_anything_runs(
    assignments: list[str], says: str
) -> None:
    with pytest.raises(SettingError, match=says):
        load_config(None, assignments)
