"""The registered champion meets new candidates: pinned, sampled, judged, kept or retired."""

from dataclasses import asdict
from pathlib import Path

import pytest

from rarescan.cohort.contracts import Gate
from rarescan.cohort.partition import PartitionConfig
from rarescan.configs.schema import RunConfig, parse_config
from rarescan.evaluation.decide import RankedDecision
from rarescan.files import read_json, write_json
from rarescan.flows import records, verbs
from rarescan.flows.standing import standing
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import write_prepared
from rarescan.registry.store import connect

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
PERSONS = PhantomConfig(patients=30, controls=50)


def settings(runs: Path, name: str, seed: int) -> RunConfig:
    return parse_config(
        {
            "name": name,
            "runs": str(runs),
            "workers": 1,
            "train": {"plain": {"family": "gaussian", "seed": seed, "conditions": []}},
            "evaluate": {"n_synthetic": 30, "canary_persons": 8},
            "retrain": {"classifier": {"steps": 10}},
        }
    )


def decided(runs: Path, name: str, seed: int) -> tuple[RunConfig, Path]:
    """Train, evaluate and select in a run of its own; return its settings and folder."""
    config, run = settings(runs, name, seed), runs / name
    prepared = write_prepared(
        run / "prepared", PERSONS, spacing_mm=8.0, partition=PartitionConfig()
    )
    verbs.train(config, prepared, run / "models" / "plain")
    verbs.evaluate(config, prepared, run / "models", run / "evaluation")
    verbs.select(config, prepared, run / "models", run / "evaluation", run / "decision")
    return config, run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two runs, the second of which met the champion of the first."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        decided(folder, "first", 0)
        decided(folder, "second", 5)
    return folder


def test_the_first_decision_registers_and_its_card_and_numbers_are_on_the_version(
    runs: Path,
) -> None:
    decision = read_json(runs / "first" / "decision" / "decision.json")
    assert decision["verdict"] == "register"
    assert decision["standing"] is None
    registry = connect(settings(runs, "first", 0).registry, runs)
    version = registry._client.get_model_version("rarescan-generator", "1")
    # The second run confirmed it, so that its card is the one that is shown.
    card = (runs / "second" / "decision" / "MODEL_CARD.md").read_text()
    assert version.description == card[:5000]
    assert (runs / "first" / "decision" / "MODEL_CARD.md").exists()
    assert version.tags["n_validation_persons"] == str(decision["selection"]["n_persons"])
    assert "gates" in version.tags
    assert registry.registered_by(decision["decision_id"]).version == "1"


def test_a_second_run_judges_the_champion_beside_its_own_and_counts_the_use(runs: Path) -> None:
    first = read_json(runs / "first" / "decision" / "decision.json")
    decision = read_json(runs / "second" / "decision" / "decision.json")
    assert standing(runs / "second" / "evaluation") == decision["standing"]
    assert decision["standing"]["candidate"] == "champion-1"
    assert set(decision["scores"]) == {"plain", "champion-1"}
    assert decision["verdict"] == "keep_champion"
    assert decision["champion"]["model_sha256"] == first["champion"]["model_sha256"]
    assert decision["selection"]["heldout_uses"] == 2
    assert "plain" in decision["selection"]["against_champion"]


def test_the_whole_again_finds_its_folders_though_the_registry_has_changed(runs: Path) -> None:
    paths = [runs / "first" / name for name in ("evaluation/scores.json", "decision/decision.json")]
    before = [path.stat().st_mtime_ns for path in paths]
    decided(runs, "first", 0)
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_a_champion_of_other_diagnoses_is_not_compared(runs: Path) -> None:
    config, run = settings(runs, "second", 5), runs / "other"
    others = PhantomConfig(patients=6, controls=6, patient="AD")
    prepared = write_prepared(run / "prepared", others, spacing_mm=8.0, partition=PartitionConfig())
    from rarescan.flows.standing import sample_champion

    found = sample_champion(config, prepared, run / "evaluation", {}, lambda model, root: root)
    assert found == {}
    noted = standing(run / "evaluation")
    assert noted is not None
    assert noted["candidate"] is None
    assert noted["version"] == "1"


def test_a_champion_that_fails_a_gate_loses_its_title_although_nobody_follows(
    runs: Path, tmp_path: Path
) -> None:
    run = runs / "second"
    config = settings(runs, "second", 5)
    met = standing(run / "evaluation")
    assert met is not None
    write_json(tmp_path / "evaluation" / "champion.json", met)
    failed = Gate(name="spread", outcome="fail", reason="Too narrow.")
    decision = RankedDecision(
        decision_id="later",
        verdict="refuse",
        chosen=None,
        gates={met["candidate"]: (failed,)},
        selection={
            "candidates": [],
            "against_champion": {},
            "reference_id": "r",
            "heldout_uses": 1,
        },
    )
    records.publish(
        config, run / "prepared", run / "models", tmp_path / "evaluation", decision, tmp_path
    )
    registry = connect(config.registry, runs)
    assert registry.champion() is None
    version = registry.find(met["model_uri"])
    assert version is not None
    assert version.permitted_use == "inside_controller"
    assert read_json(tmp_path / "decision.json")["champion"] is None
    assert not (tmp_path / "MODEL_CARD.md").exists()
    assert registry.decisions_on("r") == ["later"]
    assert asdict(decision)["gates"][met["candidate"]][0]["outcome"] == "fail"
