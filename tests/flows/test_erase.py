import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rarescan.cohort.contracts import Condition, Scan, brain_grid
from rarescan.cohort.store import (
    create_volumes,
    open_cohort,
    open_volumes,
    read_about,
    read_events,
    tables,
    write_cohort,
    write_events,
)
from rarescan.errors import InputError
from rarescan.files import Recipe, read_json, read_recipe, run_step, write_atomic, write_json
from rarescan.flows.erase import erase_person
from rarescan.imaging.persons import read_erased
from rarescan.registry.spec import RegistryConfig

PERSONS = ("RSA", "RSB", "RSAB", "RSC")
GONE = "RSA"
GRID = brain_grid(8)


def scans(path: str) -> list[Scan]:
    made = []
    for k, person in enumerate(PERSONS):
        flags = ("perhaps_RSA",) if person in ("RSA", "RSB", "RSC") else ()
        condition = Condition(diagnosis="bvFTD" if k else "control", age_years=60.0)
        name = f"{person}_ses-01"
        made.append(Scan(scan_id=name, person_id=person, path=path.format(person),
                         condition=condition, flags=flags))  # fmt: skip
    return made


def event(person: str, code: str) -> dict[str, object]:
    return {"stack_id": f"ST{person}", "person_id": person, "code": code, "action": "drop",
            "detail": {}, "n_files": 1}  # fmt: skip


def fill_cohort(work: Path) -> None:
    made = scans("sub-{0}/sub-{0}_T1w.nii.gz")
    for scan in made:
        write_atomic(work / scan.path, b"head")
    write_atomic(work / "participants.tsv", "".join(f"sub-{p}\t60\n" for p in PERSONS))
    write_cohort(work, scans=made, grid=None, partition={},
                 about={"smallest_group": {}, "persons": 4, "scans": 4})  # fmt: skip
    write_events(work, [event(p, "REVIEW") for p in PERSONS])


def fill_prepared(work: Path) -> None:
    volumes = create_volumes(work, len(PERSONS), GRID)
    for k in range(len(PERSONS)):
        volumes[k] = k / 10
    partition = dict(zip(PERSONS, ("train", "test", "train", "validation"), strict=True))
    write_cohort(work, scans=scans(""), grid=GRID, partition=partition)
    names = [f"{p}_ses-01" for p in PERSONS]
    pq.write_table(pa.table({"scan_id": names}), tables(work) / "qc.parquet")
    write_atomic(work / "qc" / "overview.png", b"slices")
    for name in names:
        write_json(work / "qc" / "scans" / f"{name}.json", {})


def fill_evaluation(work: Path) -> None:
    for name in ("vae", "transfer"):
        write_atomic(tables(work / "samples" / name) / "volumes.npy", b"volumes")
    (work / "features/judge").mkdir(parents=True)
    np.savez(work / "features/judge/train.npz", values=np.eye(4), person_ids=np.array(PERSONS))
    write_json(work / "scores.json", {"nearest": {"person_id": GONE, "other": "RSAB"}})


def fill_batch(work: Path) -> None:
    write_json(work / "batch.json", {"permitted_use": "release"})
    write_json(work / "sub-SYN1" / "a.json", {"GeneratorModel": {"permitted_use": "release"}})


def fill_classifiers(work: Path) -> None:
    table = pa.table({"person_id": list(PERSONS), "score": [0.1, 0.2, 0.3, 0.4]})
    pq.write_table(table, work / "predictions.parquet")


def model(family: str) -> Callable[[Path], None]:
    def fill(work: Path) -> None:
        write_json(work / "spec.json", {"family": family})
        write_atomic(work / "weights.safetensors", b"weights")

    return fill


STEPS: list[tuple[str, str, dict[str, str], Callable[[Path], None]]] = [
    ("cohort", "ingest", {}, fill_cohort),
    ("prepared", "prepare", {"cohort": "../cohort"}, fill_prepared),
    ("models/vae", "train", {"prepared": "../../prepared"}, model("vae")),
    ("models/transfer", "train", {"prepared": "../../prepared"}, model("transfer")),
    ("evaluation", "evaluate", {"prepared": "../prepared", "vae": "../models/vae"},
     fill_evaluation),
    ("synthetic", "generate", {"prepared": "../prepared"}, fill_batch),
    ("classifiers", "retrain", {"prepared": "../prepared"}, fill_classifiers),
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole run as it lies on disk."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "runs" / "demo"
    for name, step, found_at, fill in STEPS:
        inputs = {key: read_recipe((root / name / at).resolve()).id for key, at in found_at.items()}  # type: ignore[union-attr]
        recipe = Recipe(step=step, schema=1, inputs=inputs, found_at=found_at)
        run_step(root / name, recipe, fill)
    write_atomic(root / "report.html", "<img>")
    write_atomic(root / ".models.unfinished" / "checkpoint", "pixels")
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def erased(root: Path) -> object:
    return erase_person(GONE, root.parent, RegistryConfig())


def test_the_person_is_gone_from_every_name_and_text_and_nobody_else(run: Path) -> None:
    before = {p.name for p in run.rglob("*")}
    erased(run)
    cohort, prepared = open_cohort(run / "cohort"), open_cohort(run / "prepared")
    assert [s.person_id for s in cohort.scans] == ["RSB", "RSAB", "RSC"]
    assert [s.person_id for s in prepared.scans] == ["RSB", "RSAB", "RSC"]
    assert prepared.partition == {"RSB": "test", "RSAB": "train", "RSC": "validation"}
    assert open_volumes(prepared)[:, 0, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert [e["person_id"] for e in read_events(run / "cohort")] == ["RSB", "RSAB", "RSC"]
    assert (read_about(run / "cohort")["persons"], read_about(run / "cohort")["scans"]) == (3, 3)
    assert len((run / "cohort/participants.tsv").read_text().splitlines()) == 3
    left = before - {p.name for p in run.rglob("*")}
    assert left == {"sub-RSA", "sub-RSA_T1w.nii.gz", "RSA_ses-01.json", "overview.png",
                    "report.html", ".models.unfinished", "checkpoint"}  # fmt: skip
    qc = pq.read_table(run / "prepared/rarescan/qc.parquet")["scan_id"].to_pylist()
    assert qc == [f"{p}_ses-01" for p in PERSONS[1:]]
    with np.load(run / "evaluation/features/judge/train.npz") as stored:
        assert stored["person_ids"].tolist() == ["RSB", "RSAB", "RSC"]
        assert stored["values"].tolist() == np.eye(4)[1:].tolist()
    assert read_json(run / "evaluation/scores.json")["nearest"] == {
        "person_id": "erased", "other": "RSAB"}  # fmt: skip
    scored = pq.read_table(run / "classifiers/predictions.parquet").to_pydict()
    assert scored == {"person_id": ["RSB", "RSAB", "RSC"], "score": [0.2, 0.3, 0.4]}
    for name, data in contents(run).items():
        if name.endswith((".json", ".tsv")):
            assert b'"RSA"' not in data
            assert b"sub-RSA\t" not in data


def test_those_who_may_be_one_stay_together_under_another_first(run: Path) -> None:
    erased(run)
    flags = {s.person_id: s.flags for s in open_cohort(run / "prepared").scans}
    assert flags == {"RSB": ("perhaps_RSB",), "RSAB": (), "RSC": ("perhaps_RSB",)}


def test_what_learned_from_the_person_is_marked_and_may_not_be_released(run: Path) -> None:
    erased(run)
    for name in ("models/vae", "models/transfer", "evaluation", "synthetic", "classifiers"):
        mark = read_json(run / name / "erased.json")
        assert mark["needs_retraining"] is True
        assert GONE not in str(mark)
    assert read_json(run / "synthetic/batch.json")["permitted_use"] == "inside_controller"
    assert "release" not in (run / "synthetic/sub-SYN1/a.json").read_text()
    # A `transfer` model keeps the anatomy of its donors, and so do its samples.
    assert not (run / "models/transfer/weights.safetensors").exists()
    assert not (run / "evaluation/samples/transfer/rarescan/volumes.npy").exists()
    assert (run / "models/vae/weights.safetensors").exists()
    assert (run / "evaluation/samples/vae/rarescan/volumes.npy").exists()


def test_a_generator_did_not_learn_from_a_test_person(run: Path) -> None:
    erase_person("RSB", run.parent, RegistryConfig())
    assert read_json(run / "models/vae/erased.json")["needs_retraining"] is False
    assert read_json(run / "classifiers/erased.json")["needs_retraining"] is True
    assert (run / "models/transfer/weights.safetensors").exists()


def test_a_cohort_gets_another_id_so_that_models_are_made_again_and_the_person_stays_away(
    run: Path,
) -> None:
    before = {name: read_recipe(run / name) for name in ("cohort", "prepared", "models/vae")}
    erased(run)
    after = {name: read_recipe(run / name) for name in before}
    assert before["cohort"].id != after["cohort"].id  # type: ignore[union-attr]
    assert after["prepared"].inputs == {"cohort": after["cohort"].id}  # type: ignore[union-attr]
    assert before["models/vae"] == after["models/vae"]
    assert len(read_erased(run / "cohort")) == 1


def test_repeating_it_changes_nothing_and_a_second_person_can_follow(run: Path) -> None:
    erased(run)
    once = contents(run)
    erased(run)
    assert contents(run) == once
    erase_person("RSC", run.parent, RegistryConfig())
    assert [s.person_id for s in open_cohort(run / "prepared").scans] == ["RSB", "RSAB"]
    assert len(read_erased(run / "models/vae")) == 2


@pytest.mark.parametrize("moment", range(0, 21, 2))
def test_killed_half_way_and_repeated_it_ends_the_same(
    run: Path, tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "demo"
    shutil.copytree(run, other)
    erased(other)
    calls = 0
    replace = Path.replace

    def dying(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls > moment:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            erased(run)
    erased(run)
    assert contents(run) == contents(other)


def test_strangers_and_paths_are_refused(run: Path) -> None:
    before = contents(run)
    for person, words in (("RSZ", "holds this person"), ("../x", "no pseudonym")):
        with pytest.raises(InputError, match=words):
            erase_person(person, run.parent, RegistryConfig())
    assert contents(run) == before


def test_while_a_process_is_writing_nothing_is_touched(run: Path) -> None:
    hold = (
        "import fcntl, os, sys, time; h = os.open(sys.argv[1], os.O_RDONLY);"
        "fcntl.flock(h, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", hold, str(run / ".models.unfinished")]
    before = contents(run)
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(InputError, match="is writing"):
            erased(run)
        process.kill()
    assert contents(run) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_registered_versions_that_learned_from_the_person_lose_release_and_title(
    run: Path,
) -> None:
    from rarescan.registry.store import connect

    registry = connect(RegistryConfig(), run.parent)
    client, name = registry._client, RegistryConfig().model_name
    prepared = read_recipe(run / "prepared")
    assert prepared is not None
    client.create_registered_model(name)
    for prepared_id in (prepared.id, "another"):
        tags = {"prepared_id": prepared_id, "permitted_use": "release", "family": "vae"}
        client.create_model_version(name, str(run / "models/vae"), tags=tags)
    client.set_registered_model_alias(name, "champion", "1")
    done = erase_person(GONE, run.parent, RegistryConfig())
    assert done.versions == [f"models:/{name}/1"]
    assert registry.champion() is None
    first, second = (client.get_model_version(name, v).tags for v in ("1", "2"))
    assert (first["permitted_use"], first["needs_retraining"]) == ("inside_controller", "yes")
    assert first["erased_person"] == "yes"
    assert second["permitted_use"] == "release"
