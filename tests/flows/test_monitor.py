"""A grown cohort is looked at, its champion judged again, or the reason why not is said."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rarescan.classifiers import domain
from rarescan.cohort.contracts import Question, brain_grid
from rarescan.cohort.partition import PartitionConfig, draw_partition
from rarescan.cohort.store import create_volumes, open_cohort, open_volumes, write_cohort
from rarescan.configs.schema import RunConfig, parse_config
from rarescan.errors import GateRefusedError, GridMismatchError, SettingError
from rarescan.evaluation.evaluate import write_scores
from rarescan.files import Recipe, read_json, write_json
from rarescan.flows import deploy, start
from rarescan.flows.monitor import monitor
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import person_volumes, write_prepared

GRID = brain_grid(8.0)
SETTINGS = {"workers": 1, "evaluate": {"n_synthetic": 20, "canary_persons": 5}}
KNOWN = 50


def config(**more: object) -> RunConfig:
    return parse_config(SETTINGS | more)


def finish(root: Path, step: str) -> Path:
    recipe = Recipe(step=step, schema=1, config={"name": root.name})
    write_json(root / "recipe.json", {"id": recipe.id, **recipe.as_dict()})
    return root


def part(root: Path, whole, rows, partition, *, brighter: float = 1.0) -> Path:
    """Write some persons of a cohort as a prepared cohort of its own."""
    scans = [whole.scans[row] for row in rows]
    create_volumes(root, len(scans), GRID)[:] = open_volumes(whole)[list(rows)] * brighter
    known = {scan.person_id for scan in scans}
    kept = {person: p for person, p in partition.items() if person in known}
    write_cohort(root, scans=scans, grid=GRID, partition=kept)
    return finish(root, "prepare")


class Network:
    """A judge that looks at block means and calls the darker half patients."""

    weights_sha256 = "f" * 64

    def embed(self, volumes):
        seen = volumes[:, ::4, ::4, ::4].reshape(len(volumes), -1)
        p = 1 / (1 + np.exp(40 * (seen.mean(axis=1) - 0.3)))
        return seen.astype(np.float32), np.column_stack([1 - p, p]).astype(np.float32)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run, a cohort that has grown, and cohorts that have not."""
    root = tmp_path_factory.mktemp("stage")
    people = PhantomConfig(patients=40, controls=40)
    partition = PartitionConfig(fewest_validation=0)
    drawn = write_prepared(root / "drawn", people, spacing_mm=8.0, partition=partition)
    whole = open_cohort(drawn)
    order = np.random.default_rng(0).permutation(len(whole.scans))
    first = draw_partition([whole.scans[i] for i in order[:KNOWN]], partition)
    grown = draw_partition(whole.scans, partition, previous=first)
    run = root / "runs" / "first"
    part(run / "prepared", whole, order[:KNOWN], grown)
    part(root / "grown", whole, order, grown)
    part(root / "newcomers", whole, order[KNOWN:], grown)
    other = {person: "validation" if p == "train" else "train" for person, p in grown.items()}
    part(root / "divided anew", whole, order, other)
    samples = run / "evaluation" / "samples" / "vae"
    made = [
        replace(scan, origin="synthetic", person_id=f"SYN{i}", scan_id=f"SYN{i}")
        for i, scan in enumerate(whole.scans[30:50])
    ]
    others = person_volumes(replace(people, seed=9), range(30, 50), 8.0)
    create_volumes(samples, 20, GRID)[:] = others
    write_cohort(samples, scans=made, grid=GRID, partition={})
    finish(run / "network", "judge")
    write_scores(
        run / "evaluation",
        run / "prepared",
        {"vae": samples},
        Network().embed,
        config().evaluate,
        Question(),
    )
    finish(run / "evaluation", "evaluate")
    champion = {"candidate": "vae", "prepared_id": open_cohort(run / "prepared").cohort_id}
    write_json(run / "decision" / "decision.json", {"champion": champion})
    finish(run / "decision", "select")
    return root


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "open_network", lambda folder: Network())


@pytest.mark.long
def test_a_grown_cohort_is_looked_at_and_its_champion_judged_again(
    stage: Path, judge: None
) -> None:
    run, cohort = stage / "runs" / "first", stage / "grown"
    folder = monitor(config(), run, cohort)
    found = read_json(folder / "monitor.json")
    assert folder == run / "monitor" / open_cohort(cohort).cohort_id
    known = open_cohort(run / "prepared")
    assert found["n_reference"] == len(known.indices("train"))
    assert found["n_new"] == 80 - KNOWN
    assert found["verdict"] == "no_drift_seen", "both are draws from one population"
    again = found["champion"]
    now = open_cohort(cohort).indices("validation")
    assert again["mmd"]["now"]["n_real"] == len(now) > again["mmd"]["then"]["n_real"]
    assert again["outcome"] in ("holds", "fails")
    assert (folder / "monitor.html").exists()
    text = (folder / "monitor.json").read_text() + (folder / "monitor.html").read_text()
    assert not [scan for scan in known.scans if scan.person_id in text]
    before = (folder / "monitor.json").stat().st_mtime_ns
    assert monitor(config(), run, cohort) == folder
    assert (folder / "monitor.json").stat().st_mtime_ns == before


@pytest.mark.long
def test_newcomers_alone_are_looked_at_and_judge_nobody(stage: Path) -> None:
    folder = monitor(config(), stage / "runs" / "first", stage / "newcomers")
    found = read_json(folder / "monitor.json")
    assert found["n_new"] == 80 - KNOWN
    assert "lacks persons whom the champion learned from" in found["champion"]["reason"]


@pytest.mark.long
def test_scans_of_another_scanner_are_seen(stage: Path, tmp_path: Path) -> None:
    whole = open_cohort(stage / "newcomers")
    root = part(tmp_path / "noisy", whole, range(len(whole.scans)), {})
    volumes = create_volumes(root, len(whole.scans), GRID)
    noise = np.random.default_rng(0).normal(0, 0.05, volumes.shape)
    volumes[:] = np.clip(volumes + noise * (volumes > 0), 0, 1)
    volumes.flush()
    found = read_json(monitor(config(), stage / "runs" / "first", root) / "monitor.json")
    assert found["verdict"] == "drift"
    assert [row["name"] for row in found["tests"] if row["drift"]] == ["appearance"]
    assert found["features"][0]["p_holm"] < 0.001


@pytest.mark.long
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("divided anew", "Validation persons of the new cohort taught the champion"),
        ("no champion", "The run has no champion."),
        ("erased", "learned from a person who was erased"),
        ("older", "learned from the cohort of an earlier run"),
        ("samples", "The champion's samples are gone"),
    ],
)
def test_why_a_champion_cannot_be_judged_is_said(
    stage: Path, tmp_path: Path, spoil: str, reason: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stage / "runs" / "first", run, ignore=shutil.ignore_patterns("monitor"))
    decision = run / "decision" / "decision.json"
    if spoil == "no champion":
        write_json(decision, {"champion": None})
    if spoil == "erased":
        write_json(run / "decision" / "erased.json", {})
    if spoil == "older":
        write_json(decision, {"champion": {"candidate": "vae", "prepared_id": "x"}})
    if spoil == "samples":
        shutil.rmtree(run / "evaluation" / "samples")
    cohort = stage / ("divided anew" if spoil == "divided anew" else "grown")
    found = read_json(monitor(config(), run, cohort) / "monitor.json")
    assert reason in found["champion"]["reason"]


@pytest.mark.long
def test_a_cohort_without_newcomers_and_one_on_another_grid_are_errors(
    stage: Path, tmp_path: Path
) -> None:
    run = stage / "runs" / "first"
    with pytest.raises(SettingError, match="no person whom the run does not know"):
        monitor(config(), run, run / "prepared")
    write_cohort(tmp_path, scans=[], grid=brain_grid(4.0), partition={})
    finish(tmp_path, "prepare")
    with pytest.raises(GridMismatchError):
        monitor(config(), run, tmp_path)


def test_a_schedule_to_watch_becomes_a_deployment_of_its_own() -> None:
    watch = {"cohort": "watched", "schedule": "0 6 * * 1"}
    both = config(name="mine", schedule="0 2 * * 6", monitor=watch)
    made = deploy._deployments(both)
    assert [one.name for one in made] == ["mine", "mine monitor"]
    assert made[1].parameters["verb"] == "monitor"
    assert made[1].parameters["arguments"] == {"run": "runs/mine", "cohort": "watched"}
    assert [str(one.schedules[0].schedule.cron) for one in made] == ["0 2 * * 6", "0 6 * * 1"]
    assert [one.name for one in deploy._deployments(config(monitor=watch))] == ["run monitor"]


@pytest.mark.parametrize("watch", [{}, {"schedule": "0 6 * * 1"}])
def test_a_deployment_without_work_is_an_error_with_a_remedy(watch: dict) -> None:
    with pytest.raises(SettingError) as caught:
        deploy.serve_local([config(monitor=watch)])
    assert "onitor" in caught.value.remedy


@pytest.mark.parametrize(
    ("verdict", "champion", "status"),
    [
        ("drift", {"reason": "none"}, 3),
        ("no_drift_seen", {"outcome": "fails"}, 3),
        ("no_drift_seen", {"outcome": "holds"}, 0),
        ("insufficient", {"reason": "none"}, 0),
    ],
)
def test_only_strict_commands_end_with_3_on_drift_or_a_champion_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, champion: dict, status: int
) -> None:
    from typer.testing import CliRunner

    from rarescan.cli import beside  # noqa: F401  (registers its commands on `app`)
    from rarescan.cli.main import app

    write_json(tmp_path / "monitor.json", {"verdict": verdict, "champion": champion})
    monkeypatch.setattr(start, "run_verb", lambda *_, **__: tmp_path)
    words = ["monitor", str(tmp_path), str(tmp_path)]
    plain, strict = (CliRunner().invoke(app, [*words, *more]) for more in ([], ["--strict"]))
    assert plain.exit_code == 0
    assert plain.stdout.split() == [verdict, str(tmp_path / "monitor.html")]
    ended = strict.exception.exit_code if isinstance(strict.exception, GateRefusedError) else 0
    assert ended == status
