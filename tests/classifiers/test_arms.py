"""Arms: what differs between them, what never does, and what is refused."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from rarescan.classifiers import arm_scans, arms, baseline
from rarescan.classifiers.adjusted import ADJUSTMENT
from rarescan.classifiers.examples import Examples, labelled
from rarescan.classifiers.network import load_network
from rarescan.classifiers.spec import ClassifierConfig, RetrainConfig
from rarescan.cohort.contracts import Part, Question
from rarescan.cohort.store import open_cohort, write_cohort
from rarescan.errors import GridMismatchError, InputError, SettingError
from rarescan.files import require_recipe, write_json

QUICK = RetrainConfig(seeds=2, classifier=ClassifierConfig(steps=10))
QUESTION = Question()


@pytest.fixture(scope="module")
def batch(prepared: Path, make_cohort: Callable[..., Path], tmp_path_factory: Any) -> Path:
    """Return 10 synthetic patients and 5 synthetic controls, generated for this cohort."""
    return make_cohort(
        tmp_path_factory.mktemp("batch") / "synthetic",
        10,
        5,
        seed=50,
        origin="synthetic",
        partition=False,
        prepared_id=require_recipe(prepared).id,
    )


@pytest.fixture(scope="module")
def finished(prepared: Path, batch: Path, tmp_path_factory: Any) -> Path:
    """Return the folder of a whole run."""
    work: Path = tmp_path_factory.mktemp("arms")
    arms.run_arms(work, prepared, {"synthetic": batch}, QUICK, QUESTION, workers=1, device="cpu")
    return work


def _unit(prepared: Path, batch: Path | None, arm: str, **changes: Any) -> arms.Unit:
    unit = arms.Unit(
        work=Path("nowhere"),
        prepared=prepared,
        batch=batch,
        config=QUICK,
        question=QUESTION,
        arm=arm,
        model="network",
        seed=0,
        device="cpu",
    )
    return replace(unit, **changes)


def _added(unit: arms.Unit) -> Examples | None:
    return arms.scans_of(unit, open_cohort(unit.prepared))[1]


def _real(prepared: Path) -> Examples:
    return labelled(open_cohort(prepared), QUESTION, "train")


def test_every_held_out_person_is_scored_once_by_every_fit(finished: Path, prepared: Path) -> None:
    table = pd.read_parquet(finished / arms.PREDICTIONS)
    cohort = open_cohort(prepared)
    held_out = {p: part for p, part in cohort.partition.items() if part != "train"}
    fits = table.groupby(["arm", "model", "seed"])
    assert {name for name, _ in fits} == {
        (arm, model, seed)
        for seed in (0, 1)
        for arm, model in [
            *((arm, "network") for arm in QUICK.arms),
            ("real", "linear"),
            ("classical_synthetic", "linear"),
        ]
    }
    truth = {s.person_id: int(s.condition.diagnosis == "bvFTD") for s in cohort.scans}
    for _, rows in fits:
        assert dict(zip(rows.person_id, rows.part, strict=True)) == held_out
        assert len(rows) == len(held_out)
        assert all(truth[p] == t for p, t in zip(rows.person_id, rows.truth, strict=True))
    assert table.score.between(0, 1).all()


def test_the_table_holds_what_the_saved_models_say(finished: Path, prepared: Path) -> None:
    table = pd.read_parquet(finished / arms.PREDICTIONS)
    test = labelled(open_cohort(prepared), QUESTION, "test")
    opened = {
        ("network", "classical"): load_network(finished / "networks" / "classical-1", "cpu"),
        ("linear", "real"): baseline.load_linear(finished / "linear" / "real-1"),
    }
    for (model, arm), classifier in opened.items():
        rows = table.query(
            f"model == '{model}' and arm == '{arm}' and seed == 1 and part == 'test'"
        )
        scores = dict(zip(test.person_ids, classifier.score(test.read()), strict=True))
        assert dict(zip(rows.person_id, rows.score, strict=True)) == scores


def test_curves_tell_steps_and_added_patients_of_every_fit(finished: Path) -> None:
    curves = json.loads((finished / arms.CURVES).read_text())
    assert curves["persons"]["train"] == {"patients": 14, "controls": 22}
    added = {(fit["arm"], fit["model"]): fit["added"] for fit in curves["fits"]}
    assert added["classical_synthetic", "network"] == added["placebo", "network"] == 10
    assert added["classical_synthetic", "linear"] == 10
    assert added["real", "network"] == added["classical", "network"] == 0
    networks = [fit for fit in curves["fits"] if fit["model"] == "network"]
    assert {fit["steps"] for fit in networks} == {10}
    assert all(fit["curve"][-1]["step"] == 10 for fit in networks)


def test_repeats_differ_and_arms_of_one_repeat_share_the_seed(prepared: Path, batch: Path) -> None:
    seeds = {
        (arm, seed): arms.unit_config(_unit(prepared, batch, arm, seed=seed)).seed
        for arm in QUICK.arms
        for seed in (0, 1, 2)
    }
    assert len(set(seeds.values())) == 3
    assert all(seeds[arm, 1] == seeds["real", 1] for arm in QUICK.arms)


def test_only_the_augmented_arms_are_augmented(prepared: Path, batch: Path) -> None:
    strengths = {
        arm: arms.unit_config(_unit(prepared, batch, arm)).augmentation for arm in QUICK.arms
    }
    assert strengths == {
        "real": 0,
        "oversampled": 0,
        "classical": 1,
        "classical_synthetic": 1,
        "placebo": 1,
    }


def test_placebo_patients_are_training_controls(prepared: Path, batch: Path) -> None:
    real = _real(prepared)
    placebo = _added(_unit(prepared, batch, "placebo"))
    assert placebo is not None
    controls = {p for p, label in zip(real.person_ids, real.labels, strict=True) if label == 0}
    assert set(placebo.person_ids) <= controls
    assert set(placebo.labels) == {1}
    source = {real.rows[i]: real.person_ids[i] for i in range(len(real))}
    assert [source[row] for row in placebo.rows] == list(placebo.person_ids)


def test_added_patients_are_synthetic_patients_and_no_controls(prepared: Path, batch: Path) -> None:
    unit = _unit(prepared, batch, "classical_synthetic")
    added = _added(unit)
    assert added is not None
    diagnosis = {s.person_id: s.condition.diagnosis for s in open_cohort(batch).scans}
    assert [diagnosis[p] for p in added.person_ids] == ["bvFTD"] * 10
    assert _added(_unit(prepared, None, "classical")) is None


@pytest.mark.parametrize(
    ("patients", "controls", "share", "in_batch", "expected"),
    [
        (12, 120, 1.0, 500, 108),  # the reference's 12 + 120 gets 108
        (12, 120, 0.5, 500, 54),
        (12, 120, 1.0, 30, 30),
        (40, 50, 1.0, 500, 40),  # one for each real patient at least
        (51, 21, 1.0, 500, 51),
        (2, 3, 0.1, 500, 1),
    ],
)
def test_synthetic_patients_fill_the_rare_class(
    patients: int, controls: int, share: float, in_batch: int, expected: int
) -> None:
    def persons(n_positive: int, n_negative: int) -> Examples:
        n = n_positive + n_negative
        return Examples(
            sources=(np.zeros((n, 1, 1, 1), np.float32),),
            rows=tuple((0, i) for i in range(n)),
            labels=(1,) * n_positive + (0,) * n_negative,
            person_ids=tuple(map(str, range(n))),
        )

    config = RetrainConfig(synthetic_share=share)
    assert arm_scans.n_added(config, persons(patients, controls), persons(in_batch, 0)) == expected


def test_without_a_batch_there_is_no_synthetic_arm(prepared: Path, tmp_path: Path) -> None:
    config = replace(QUICK, arms=("real", "classical_synthetic", "placebo"), seeds=1)
    arms.run_arms(tmp_path, prepared, {}, config, QUESTION, workers=1, device="cpu")
    table = pd.read_parquet(tmp_path / arms.PREDICTIONS)
    assert set(zip(table.arm, table.model, strict=True)) == {
        ("real", "network"),
        ("real", "linear"),
        ("placebo", "network"),
    }


@pytest.mark.long
def test_a_killed_run_goes_on_and_ends_the_same(
    prepared: Path,
    batch: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted: list[arms.Unit] = []
    fit_linear, fit_network = arms._FIT["linear"], arms._FIT["network"]

    def counted(unit: arms.Unit, cohort: Any) -> Any:
        if len(fitted) == 5:
            raise KeyboardInterrupt
        fitted.append(unit)
        return (fit_linear if unit.model == "linear" else fit_network)(unit, cohort)

    monkeypatch.setitem(arms._FIT, "linear", counted)
    monkeypatch.setitem(arms._FIT, "network", counted)
    with pytest.raises(KeyboardInterrupt):
        arms.run_arms(
            tmp_path, prepared, {"synthetic": batch}, QUICK, QUESTION, workers=1, device="cpu"
        )
    assert not (tmp_path / arms.PREDICTIONS).exists()
    monkeypatch.undo()
    first_result = fitted[0].folder / "result.json"
    before = first_result.stat().st_mtime_ns
    arms.run_arms(
        tmp_path, prepared, {"synthetic": batch}, QUICK, QUESTION, workers=1, device="cpu"
    )
    assert first_result.stat().st_mtime_ns == before
    for name in (arms.PREDICTIONS, arms.CURVES):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_held_out_scans_never_reach_the_weights(prepared: Path, tmp_path: Path) -> None:
    """Change every validation and test volume; the weights stay the same bytes."""
    root = tmp_path / "changed"
    _copy_with_other_volumes(prepared, root, ("validation", "test"))
    for model in ("network", "linear"):
        unit = _unit(prepared, None, "real", model=model)
        weights = []
        for i, cohort in enumerate((prepared, root)):
            fitted = replace(unit, work=tmp_path / f"work{i}", prepared=cohort)
            arms.run_unit(fitted)
            weights.append((fitted.folder / "weights.safetensors").read_bytes())
        assert weights[0] == weights[1]


def _copy_with_other_volumes(source: Path, root: Path, parts: tuple[Part, ...]) -> None:
    shutil.copytree(source, root)
    rows = open_cohort(root).indices(*parts)
    volumes = np.load(root / "rarescan" / "volumes.npy", mmap_mode="r+")
    volumes[rows] = 1 - volumes[rows]
    volumes.flush()


def test_a_person_with_two_scans_is_scored_once_with_their_mean(
    make_cohort: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_cohort(tmp_path / "twice", 12, 14, scans_each=2)
    unit = _unit(root, None, "real", work=tmp_path / "work", model="linear")
    rows = arms.run_unit(unit)["predictions"]
    assert max(Counter(row["person_id"] for row in rows).values()) == 1
    cohort = open_cohort(root)
    model = baseline.load_linear(unit.folder)
    held_out = labelled(cohort, QUESTION, "test")
    scores = model.score(held_out.read()).reshape(-1, 2).mean(1)
    found = [row["score"] for row in rows if row["part"] == "test"]
    np.testing.assert_allclose(found, scores, rtol=1e-6)


def test_a_batch_of_another_cohorts_model_is_refused(
    make_cohort: Callable[..., Path], prepared: Path, tmp_path: Path
) -> None:
    batch = make_cohort(
        tmp_path / "b", 3, 0, origin="synthetic", partition=False, prepared_id="0123456789abcdef"
    )
    with pytest.raises(InputError, match="another cohort"):
        arms.run_arms(tmp_path / "w", prepared, {"synthetic": batch}, QUICK, QUESTION)
    (batch / "batch.json").unlink()
    recipe = json.loads((batch / "recipe.json").read_text())
    write_json(batch / "recipe.json", recipe | {"inputs": {"prepared": "0123456789abcdef"}})
    with pytest.raises(InputError, match="another cohort"):
        arms.run_arms(tmp_path / "w", prepared, {"synthetic": batch}, QUICK, QUESTION)


def test_a_real_cohort_in_the_place_of_a_batch_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not synthetic"):
        arms.run_arms(tmp_path, prepared, {"synthetic": prepared}, QUICK, QUESTION)


def test_a_batch_on_another_grid_is_refused(
    make_cohort: Callable[..., Path], prepared: Path, tmp_path: Path
) -> None:
    batch = make_cohort(tmp_path / "b", 2, 0, origin="synthetic", partition=False, spacing_mm=16.0)
    with pytest.raises(GridMismatchError):
        arms.run_arms(tmp_path / "w", prepared, {"synthetic": batch}, QUICK, QUESTION)


def test_a_batch_without_patients_is_refused(
    make_cohort: Callable[..., Path], prepared: Path, tmp_path: Path
) -> None:
    batch = make_cohort(tmp_path / "b", 0, 4, origin="synthetic", partition=False)
    with pytest.raises(InputError, match="nobody with the diagnosis 'bvFTD'"):
        arms.run_arms(tmp_path / "w", prepared, {"synthetic": batch}, QUICK, QUESTION)


def test_a_question_about_an_absent_diagnosis_names_the_present_ones(
    prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="the cohort has: bvFTD, control"):
        arms.run_arms(tmp_path, prepared, {}, QUICK, Question(positive="AD"))
    assert not list(tmp_path.iterdir())


def test_a_planted_effect_is_found_on_test_persons(prepared: Path, tmp_path: Path) -> None:
    config = RetrainConfig(classifier=ClassifierConfig(steps=60), seeds=1)
    unit = _unit(prepared, None, "classical", config=config, work=tmp_path)
    rows = arms.run_unit(unit)["predictions"]
    assert roc_auc_score([r["truth"] for r in rows], [r["score"] for r in rows]) > 0.9


@pytest.mark.parametrize("model", ["network", "linear"])
def test_arms_of_pictures_take_the_modality_of_the_cohort(
    model: Any, pictures: Path, tmp_path: Path
) -> None:
    question = Question(positive="covid", negative="regular")
    config = RetrainConfig(classifier=ClassifierConfig(steps=40, channels=(4, 8)), seeds=1)
    unit = _unit(
        pictures, None, "real", work=tmp_path, model=model, config=config, question=question
    )
    rows = arms.run_unit(unit)["predictions"]
    assert roc_auc_score([r["truth"] for r in rows], [r["score"] for r in rows]) > 0.9
    if model == "network":
        opened = load_network(unit.folder, "cpu")
        assert opened.modality.name == "ultrasound"
        assert opened.shape == (16, 16, 1)


def test_arms_take_the_same_steps_and_refuse_what_would_change_that(
    prepared: Path, tmp_path: Path
) -> None:
    config = replace(QUICK, classifier=ClassifierConfig(patience=3))
    with pytest.raises(SettingError, match="different numbers of steps"):
        arms.run_arms(tmp_path, prepared, {}, config, QUESTION)
    idle = replace(QUICK, classifier=ClassifierConfig(network="resnet10", channels=(4,)))
    with pytest.raises(SettingError, match=r"retrain\.classifier\.channels"):
        arms.run_arms(tmp_path, prepared, {}, idle, QUESTION)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_the_number_of_workers_changes_no_byte(
    prepared: Path, finished: Path, tmp_path: Path
) -> None:
    config = replace(QUICK, arms=("real",), seeds=1)
    arms.run_arms(tmp_path, prepared, {}, config, QUESTION, workers=2, device="cpu")
    for fit in ("networks/real-0", "linear/real-0"):
        for name in ("weights.safetensors", "result.json"):
            assert (tmp_path / fit / name).read_bytes() == (finished / fit / name).read_bytes()


@pytest.fixture
def without_validation(prepared: Path, tmp_path: Path) -> Path:
    """Return the cohort with its validation persons among the test persons."""
    root = tmp_path / "two_parts"
    shutil.copytree(prepared, root)
    stored = json.loads((root / "rarescan" / "cohort.json").read_text())
    parts = {p: "train" if v == "train" else "test" for p, v in stored["partition"].items()}
    write_json(root / "rarescan" / "cohort.json", stored | {"partition": parts})
    return root


def test_arms_of_all_kinds_are_trained_where_nobody_validates(
    without_validation: Path, batch: Path, make_cohort: Callable[..., Path], tmp_path: Path
) -> None:
    """The batch is written by the name that the arm gives it; the oracle has persons of its own."""
    oracle = make_cohort(tmp_path / "oracle", 10, 5, seed=9, partition=False)
    stored = json.loads((oracle / "rarescan" / "cohort.json").read_text())
    held_out = {p for p, v in open_cohort(without_validation).partition.items() if v == "test"}
    parts = {s.person_id: "train" for s in open_cohort(oracle).scans if s.person_id not in held_out}
    write_json(oracle / "rarescan" / "cohort.json", stored | {"partition": parts})
    names = ("strong", "landmarks", "weighted", "mixup", "tones+vae:all", "strong+vae", "oracle")
    config = replace(QUICK, arms=names, seeds=1)
    arms.run_arms(
        tmp_path / "w", without_validation, {"vae": batch}, config, QUESTION,
        oracle=oracle, workers=1, device="cpu",
    )  # fmt: skip
    table = pd.read_parquet(tmp_path / "w" / arms.PREDICTIONS)
    assert set(table.part) == {"test"}
    assert set(zip(table.arm, table.model, strict=True)) == {
        *((arm, "network") for arm in names),
        *((arm, "linear") for arm in ("strong", "tones+vae:all", "strong+vae", "oracle")),
    }
    curves = json.loads((tmp_path / "w" / arms.CURVES).read_text())
    added = {fit["arm"]: fit["added"] for fit in curves["fits"]}
    assert (added["tones+vae:all"], added["strong+vae"], added["oracle"]) == (15, 10, 0)
    assert load_network(tmp_path / "w" / "networks" / "strong-0", "cpu").config.recipe == "strong"
    with pytest.raises(InputError, match="no usable network"):
        load_network(tmp_path / "w" / "networks" / "landmarks-0", "cpu")


def test_the_oracle_never_trains_on_somebody_who_is_tested(prepared: Path, tmp_path: Path) -> None:
    oracle = tmp_path / "oracle"
    shutil.copytree(prepared, oracle)
    stored = json.loads((oracle / "rarescan" / "cohort.json").read_text())
    everybody = dict.fromkeys(stored["partition"], "train")
    write_json(oracle / "rarescan" / "cohort.json", stored | {"partition": everybody})
    config = replace(QUICK, arms=("real", "oracle"))
    with pytest.raises(InputError, match="would train the oracle"):
        arms.run_arms(tmp_path / "w", prepared, {}, config, QUESTION, oracle=oracle)
    with pytest.raises(SettingError, match="needs a cohort of its own"):
        arms.run_arms(tmp_path / "w", prepared, {}, config, QUESTION)


def test_an_arm_of_another_batch_names_those_that_there_are(
    prepared: Path, batch: Path, tmp_path: Path
) -> None:
    config = replace(QUICK, arms=("strong+vea",))
    with pytest.raises(SettingError, match="a batch named 'vea'") as refused:
        arms.run_arms(tmp_path, prepared, {"vae": batch}, config, QUESTION)
    assert "vae" in refused.value.remedy


@pytest.mark.parametrize("arm", ["strong", "landmarks", "site_balanced"])
def test_recipes_of_brains_are_refused_for_pictures(
    arm: str, pictures: Path, tmp_path: Path
) -> None:
    question = Question(positive="covid", negative="regular")
    with pytest.raises(SettingError, match="is for brain volumes"):
        arms.run_arms(tmp_path, pictures, {}, replace(QUICK, arms=(arm,)), question)
    assert not list(tmp_path.iterdir())


def test_with_landmarks_a_tested_persons_gain_changes_nothing(
    prepared: Path, tmp_path: Path
) -> None:
    config = replace(QUICK, classifier=ClassifierConfig(steps=10, augmentation=0))
    test = labelled(open_cohort(prepared), QUESTION, "test").read()
    shifts = {}
    for arm in ("landmarks", "oversampled"):
        unit = _unit(prepared, None, arm, work=tmp_path, config=config)
        classifier, _ = arms._fit_network(unit, open_cohort(prepared))
        shifts[arm] = np.abs(classifier.score(0.8 * test) - classifier.score(test)).max()
    assert shifts["landmarks"] < 0.1 * shifts["oversampled"]


def _with_ages_and_sites(prepared: Path, folder: Path) -> Path:
    cohort = open_cohort(prepared)
    shutil.copytree(prepared, folder)
    scans = [
        replace(
            scan,
            site="AB"[i % 2],
            condition=replace(scan.condition, age_years=50.0 + 3 * (i % 10), site="AB"[i % 2]),
        )
        for i, scan in enumerate(cohort.scans)
    ]
    write_cohort(folder, scans=scans, grid=cohort.grid, partition=cohort.partition)
    return folder


def test_age_is_taken_off_the_scores_of_the_same_network(prepared: Path, tmp_path: Path) -> None:
    aged, work = _with_ages_and_sites(prepared, tmp_path / "aged"), tmp_path / "arms"
    config = replace(QUICK, seeds=1, arms=("classical", "age_adjusted"))
    arms.run_arms(work, aged, {}, config, QUESTION, workers=1, device="cpu")
    table = pd.read_parquet(work / arms.PREDICTIONS).query("model == 'network'")
    scores = table.pivot_table(index="person_id", columns="arm", values="score")
    ages = {s.person_id: s.condition.age_years for s in open_cohort(aged).scans}
    slope = json.loads((work / "networks" / "age_adjusted-0" / ADJUSTMENT).read_text())
    expected = logit(scores["classical"]) - slope["per_year"] * (
        scores.index.map(ages) - slope["age_years"]
    )
    assert slope["per_year"] != 0
    np.testing.assert_allclose(logit(scores["age_adjusted"]), expected, atol=1e-4)


def test_a_harmonised_arm_reads_its_own_cohort_and_no_other_arm_does(
    prepared: Path, tmp_path: Path
) -> None:
    own = _with_ages_and_sites(prepared, tmp_path / "own")
    other = _with_ages_and_sites(prepared, tmp_path / "harmonised")
    volumes = np.load(other / "rarescan" / "volumes.npy", mmap_mode="r+")
    volumes[:] = volumes[0].copy()
    config = replace(QUICK, seeds=1, arms=("classical", "harmonised"))
    work = tmp_path / "arms"
    with pytest.raises(SettingError, match="cohort of its own"):
        arms.run_arms(work, own, {}, config, QUESTION, workers=1, device="cpu")
    arms.run_arms(work, own, {}, config, QUESTION, harmonised=other, workers=1, device="cpu")
    table = pd.read_parquet(work / arms.PREDICTIONS).query("model == 'network'")
    varied = table.groupby("arm").score.nunique()
    assert varied["harmonised"] == 1  # one image for everybody
    assert varied["classical"] > 5
