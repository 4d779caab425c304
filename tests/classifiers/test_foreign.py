"""A classifier of others in the same arms: what it is shown, what it may say, how it is ended."""

import csv
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from rarescan.classifiers.arms import PREDICTIONS, Unit
from rarescan.classifiers.examples import labelled
from rarescan.classifiers.foreign import open_onnx, run_foreign, score_foreign, training_table
from rarescan.classifiers.foreign_command import SAID, Command
from rarescan.classifiers.scan_dataset import ScanDataset, dataset_of
from rarescan.classifiers.spec import RetrainConfig
from rarescan.cohort.contracts import Question
from rarescan.cohort.store import open_cohort, open_volumes
from rarescan.errors import InputError, SettingError
from rarescan.files import require_recipe

ARMS = RetrainConfig(seeds=1)
QUESTION = Question()


@pytest.fixture(scope="module")
def batch(prepared: Path, make_cohort: Callable[..., Path], tmp_path_factory: Any) -> Path:
    """Return 10 synthetic patients and 5 synthetic controls, generated for this cohort."""
    return make_cohort(
        tmp_path_factory.mktemp("batch") / "synthetic", 10, 5, seed=50, origin="synthetic",
        partition=False, prepared_id=require_recipe(prepared).id,
    )  # fmt: skip


def unit(prepared: Path, batch: Path | None, arm: str) -> Unit:
    return Unit(
        work=Path("nowhere"), prepared=prepared, batch=batch, config=ARMS, question=QUESTION,
        arm=arm, model="network", seed=0, device="cpu",
    )  # fmt: skip


def write_mean(path: Path, edges: tuple[int, ...]) -> Path:
    """Write an ONNX model that gives each image's mean, shape (n, 1)."""
    import onnx

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("GlobalAveragePool", ["volume"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["score"]),
    ]
    given = helper.make_tensor_value_info("volume", kind, ["n", 1, *edges])
    made = helper.make_tensor_value_info("score", kind, ["n", 1])
    graph = helper.make_graph(nodes, "mean", [given], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def linear(train: ScanDataset) -> Any:
    """Fit scikit-learn's logistic regression on voxels."""
    model = LogisticRegression(C=0.01, max_iter=500)
    model.fit(train.images().reshape(len(train), -1), train.labels)
    return lambda held_out: model.predict_proba(held_out.images().reshape(len(held_out), -1))


def test_real_holds_every_training_scan_once_and_the_others_both_classes_equally(
    prepared: Path, batch: Path
) -> None:
    cohort = open_cohort(prepared)
    table, _ = training_table(unit(prepared, None, "real"), cohort)
    assert sorted(e.scan.person_id for e in table.entries) == sorted(
        p for p, part in cohort.partition.items() if part == "train"
    )
    for arm in ("oversampled", "classical", "classical_synthetic", "placebo"):
        table, _ = training_table(unit(prepared, batch, arm), cohort)
        counts = Counter(table.labels)
        assert counts[0] == counts[1]


def test_arms_with_added_patients_differ_from_classical_in_half_of_the_positive_places_only(
    prepared: Path, batch: Path
) -> None:
    cohort = open_cohort(prepared)
    tables = {
        arm: training_table(unit(prepared, batch, arm), cohort)[0]
        for arm in ("classical", "classical_synthetic", "placebo")
    }
    sick = {s.person_id for s in cohort.scans if s.condition.diagnosis == "bvFTD"}
    plain = tables["classical"].entries
    for arm in ("classical_synthetic", "placebo"):
        entries = tables[arm].entries
        assert len(entries) == len(plain)
        added = [e for e in entries if e.label and e.scan.person_id not in sick]
        assert len(added) == len(entries) / 4
        origins = {e.scan.origin for e in added}
        assert origins == ({"synthetic"} if arm == "classical_synthetic" else {"phantom"})
        controls = [[e.row for e in t if e.label == 0] for t in (entries, plain)]
        assert controls[0] == controls[1]


def test_images_of_an_augmented_arm_are_new_at_every_place_and_the_same_at_every_call(
    prepared: Path, batch: Path
) -> None:
    cohort = open_cohort(prepared)
    table, _ = training_table(unit(prepared, batch, "classical"), cohort)
    places = [i for i, e in enumerate(table.entries) if e.row == table.entries[0].row]
    assert len(places) > 2
    seen = [table.image(i).numpy() for i in places]
    assert all((a != b).any() for a, b in pairwise(seen))
    np.testing.assert_array_equal(seen[1], table.image(places[1]).numpy())


def test_a_function_goes_through_the_arms_and_finds_the_planted_effect(
    prepared: Path, batch: Path, tmp_path: Path
) -> None:
    hidden: list[ScanDataset] = []

    def watched(train: ScanDataset) -> Any:
        score = linear(train)
        return lambda held_out: (hidden.append(held_out), score(held_out))[1]

    run_foreign(tmp_path, prepared, {"synthetic": batch}, watched, ARMS, QUESTION, device="cpu")

    table = pd.read_parquet(tmp_path / PREDICTIONS)
    assert set(table[table.model == "network"].arm) == set(ARMS.arms)
    assert "linear" in set(table.model)
    for arm in ("real", "classical_synthetic"):
        rows = table.query(f"arm == '{arm}' and model == 'network' and part == 'test'")
        assert roc_auc_score(rows.truth, rows.score) > 0.85
    assert all(held_out.labels == [] for held_out in hidden)
    assert all("label" not in held_out[0] for held_out in hidden)
    train = {p for p, part in open_cohort(prepared).partition.items() if part == "train"}
    assert not train & {e.scan.person_id for held_out in hidden for e in held_out.entries}


def test_arms_that_no_table_can_tell_are_left_out_and_named(
    prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(ARMS, arms=("real", "mixup", "weighted", "landmarks"))
    run_foreign(tmp_path, prepared, {}, linear, config, QUESTION, device="cpu")
    assert set(pd.read_parquet(tmp_path / PREDICTIONS).arm) == {"real"}
    assert {r.args[0] for r in caplog.records if "left out" in r.message} == set(config.arms[1:])  # type: ignore[index]
    with pytest.raises(SettingError, match="None of the arms"):
        run_foreign(
            tmp_path / "b", prepared, {}, linear, replace(ARMS, arms=("mixup",)), QUESTION,
            device="cpu",
        )  # fmt: skip


@pytest.mark.parametrize("scores", [[0.5], [2.0] * 24, [float("nan")] * 24])
def test_scores_that_are_no_probability_for_each_scan_are_refused(
    scores: list[float], prepared: Path, tmp_path: Path
) -> None:
    config = replace(ARMS, arms=("real",))
    with pytest.raises(InputError, match="not one probability"):
        run_foreign(
            tmp_path, prepared, {}, lambda _: lambda _: scores, config, QUESTION, device="cpu"
        )


MEAN = """
import csv, os, sys
import nibabel
train, test, scores = sys.argv[1:4]
assert not [name for name in os.environ if name.startswith(("RARESCAN_", "MLFLOW_"))]
rows = list(csv.DictReader(open(test)))
with open(scores, "w") as out:
    print("scan_id,score", file=out)
    for row in rows:
        print(row["scan_id"], nibabel.load(row["path"]).get_fdata().mean(), sep=",", file=out)
print("seen", len(list(csv.DictReader(open(train)))))
"""


def program(folder: Path, text: str, *more: str, minutes: float = 2.0) -> Command:
    path = folder / "train.py"
    path.write_text(text)
    words = (sys.executable, "-P", str(path), "{train}", "{test}", "{scores}", *more)
    return Command(words=words, minutes=minutes)


def test_a_program_gets_tables_without_held_out_labels_and_its_scores_come_back(
    prepared: Path, batch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RARESCAN_PULL_CREDENTIALS", "name:word")
    config = replace(ARMS, arms=("real", "oversampled"))
    command = program(tmp_path, MEAN)
    run_foreign(
        tmp_path / "w", prepared, {"synthetic": batch}, command, config, QUESTION, workers=1,
        device="cpu",
    )  # fmt: skip
    cohort = open_cohort(prepared)
    means = {s.person_id: v.mean() for s, v in zip(cohort.scans, open_volumes(cohort), strict=True)}
    table = pd.read_parquet(tmp_path / "w" / PREDICTIONS).query("model == 'network'")
    assert len(table) == 2 * sum(part != "train" for part in cohort.partition.values())
    expected = [means[person] for person in table.person_id]
    np.testing.assert_allclose(table.score, expected, rtol=1e-5)
    folder = tmp_path / "w" / "networks" / "oversampled-0"
    with (folder / "test.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert set(rows[0]) == {"path", "person_id", "scan_id", "age_years", "sex", "site"}
    order = [row["person_id"] for row in rows]
    assert order != sorted(order)
    with (folder / "train.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert (folder / SAID).read_text() == f"seen {len(rows)}\n"
    assert not (folder / "images").exists()
    assert str(prepared) not in json.dumps(rows)


def test_images_of_a_program_are_the_stored_ones_on_the_cohorts_grid(
    prepared: Path, tmp_path: Path
) -> None:
    cohort = open_cohort(prepared)
    table, _ = training_table(unit(prepared, None, "real"), cohort)
    keep = "import shutil, sys, pathlib as p; f = p.Path(sys.argv[4]); shutil.copytree(f / 'images', f.parent / 'kept')"  # noqa: E501
    (tmp_path / "fit").mkdir()
    with pytest.raises(InputError, match="wrote no scores"):
        program(tmp_path, keep, "{folder}").learn(table, table, tmp_path / "fit", 0)
    entry = table.entries[3]
    with (tmp_path / "fit" / "train.csv").open() as stream:
        names = {row["scan_id"]: Path(row["path"]).name for row in csv.DictReader(stream)}
    found: Any = nibabel.nifti1.load(tmp_path / "kept" / "train" / names[entry.scan.scan_id])
    np.testing.assert_array_equal(found.get_fdata(dtype=np.float32), table.image(3)[0].numpy())
    assert cohort.grid is not None
    np.testing.assert_array_equal(found.affine, cohort.grid.matrix())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise SystemExit('no such column')", "ended with 1 and said: no such column"),
        ("pass", "wrote no scores"),
        ("import sys; open(sys.argv[3], 'w').write('a,b\\n1,2\\n')", "without the columns"),
        ("import sys; open(sys.argv[3], 'w').write('scan_id,score\\n')", "of 14 scans without"),
    ],
)
def test_a_program_that_fails_is_told_what_it_did(
    text: str, says: str, prepared: Path, tmp_path: Path
) -> None:
    table, _ = training_table(unit(prepared, None, "real"), open_cohort(prepared))
    few = ScanDataset(table.entries[:14])
    with pytest.raises(InputError, match=says):
        program(tmp_path, text).learn(few, few, tmp_path, 0)


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(
    prepared: Path, tmp_path: Path
) -> None:
    table, _ = training_table(unit(prepared, None, "real"), open_cohort(prepared))
    few = ScanDataset(table.entries[:2])
    text = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(300)\n"
    )
    with pytest.raises(InputError, match=r"longer than 0\.05 minutes"):
        program(tmp_path, text, minutes=0.05).learn(few, few, tmp_path, 0)
    child = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        pytest.fail("the program's child lives on")


def test_a_command_must_say_where_files_go_and_be_startable(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"\{test\}, \{scores\}"):
        Command(words=("python", "train.py", "{train}"), minutes=1)
    table, _ = training_table(unit(prepared, None, "real"), open_cohort(prepared))
    few = ScanDataset(table.entries[:2])
    command = Command(words=("/no/such/trainer", "{train}", "{test}", "{scores}"), minutes=1)
    with pytest.raises(SettingError, match="'trainer' cannot be started"):
        command.learn(few, few, tmp_path, 0)


def test_a_changed_program_is_another_recipe_and_its_place_is_none(tmp_path: Path) -> None:
    first = program(tmp_path, "a = 1").identity()
    assert program(tmp_path, "a = 2").identity() != first
    (tmp_path / "moved").mkdir()
    assert program(tmp_path / "moved", "a = 1").identity() == first
    assert str(tmp_path) not in json.dumps(first)


def test_a_model_that_only_scores_is_shown_held_out_and_synthetic_persons(
    prepared: Path, batch: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    cohort = open_cohort(prepared)
    score = open_onnx(write_mean(tmp_path / "mean.onnx", open_volumes(cohort).shape[1:]))
    score_foreign(tmp_path / "w", prepared, batch, score, QUESTION)
    table = pd.read_parquet(tmp_path / "w" / PREDICTIONS)
    assert set(table.arm) == {"as_it_is"}
    assert Counter(table.part)["synthetic"] == 15
    assert not set(table.person_id) & {p for p, v in cohort.partition.items() if v == "train"}
    means = {
        s.person_id: v.mean()
        for home in (cohort, open_cohort(batch))
        for s, v in zip(home.scans, open_volumes(home), strict=True)
    }
    np.testing.assert_allclose(table.score, [means[p] for p in table.person_id], rtol=1e-5)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match="There is no model"):
        open_onnx(tmp_path / "absent.onnx")
    (tmp_path / "not.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="no model that ONNX Runtime can open"):
        open_onnx(tmp_path / "not.onnx")


def test_single_planes_come_as_png_and_scans_whose_names_are_alike_stay_apart(
    pictures: Path, tmp_path: Path
) -> None:
    cohort = open_cohort(pictures)
    scans = labelled(cohort, Question(positive="covid", negative="regular"), "train")
    table = dataset_of(scans, [cohort])
    twins = [
        replace(entry, scan=replace(entry.scan, scan_id=f"a{sign}1"))
        for entry, sign in zip(table.entries, "/:", strict=False)
    ]
    keep = (
        "import csv, sys, PIL.Image as i, numpy as np\n"
        "rows = list(csv.DictReader(open(sys.argv[2])))\n"
        "with open(sys.argv[3], 'w') as out:\n"
        "    print('scan_id,score', file=out)\n"
        "    for r in rows: print(r['scan_id'], np.asarray(i.open(r['path'])).mean() / 255, sep=',', file=out)\n"  # noqa: E501
    )
    both = ScanDataset(twins)
    scores = program(tmp_path, keep).learn(both, both, tmp_path, 0)
    np.testing.assert_allclose(scores, both.images().mean(axis=(1, 2, 3)), atol=0.5 / 255)
    assert scores[0] != scores[1]
