"""The decision's truth table: gates, ranking, champion, permitted use."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from rarescan.cohort.contracts import FeatureSet, Gate, Score
from rarescan.errors import InputError
from rarescan.evaluation import decide as d
from rarescan.evaluation import features as f
from rarescan.evaluation import metrics
from rarescan.evaluation.spec import SelectConfig

GATES = ("spread", "high_frequency", "copies", "plausibility")
SHIFTS = {"good": 0.0, "equal": 0.0, "worse": 0.8, "gaussian": 0.4, "transfer": 0.0}


def feature_set(n: int, seed: int, shift: float, extractor: str = f.PRIMARY) -> FeatureSet:
    values = np.random.default_rng(seed).normal(size=(n, 8)) + shift
    ids = tuple(f"{seed}-{i}" for i in range(n))
    return FeatureSet(values=values.astype(np.float32), person_ids=ids, extractor=extractor)


def stage(*names: str, outcomes=(), shifts=(), second=()):
    """Return scores and features of candidates; `outcomes`: (name, gate) -> word."""
    where = SHIFTS | dict(shifts)
    sets = {"validation": feature_set(60, 0, 0.0)}
    sets |= {name: feature_set(200, 10 + i, where[name]) for i, name in enumerate(names)}
    real = sets["validation"].values.astype(np.float64)
    sigma2 = metrics.frozen_bandwidth(real)
    outcomes = dict(outcomes)
    candidates = {}
    for name in names:
        estimate = metrics.mmd(real, sets[name].values.astype(np.float64), sigma2=sigma2)
        row = Score(name="mmd", value=estimate.value)
        gates = [Gate(name=g, outcome=outcomes.get((name, g), "pass")) for g in GATES]
        candidates[name] = {
            "scores": {f.PRIMARY: {"mmd": asdict(row)}, f.SECOND: {"mmd": asdict(row)}},
            "gates": [asdict(gate) for gate in gates],
        }
    for name, value in dict(second).items():
        candidates[name]["scores"][f.SECOND]["mmd"]["value"] = value
    bandwidths = {f.PRIMARY: sigma2, f.SECOND: sigma2}
    scores = {"extractors": {"sigma2": bandwidths}, "candidates": candidates}
    return scores, {f.PRIMARY: sets}


def run(*names: str, champion=None, seconds=None, **options):
    scores, features = stage(*names, **options)
    return d.decide(scores, seconds or {}, features, champion, SelectConfig())


def codes(decision) -> set[str]:
    return {code for code, _text in decision.reasons}


def test_the_only_candidate_that_passes_everything_is_registered_for_release():
    decision = run("good")
    assert (decision.verdict, decision.chosen) == ("register", "good")
    assert decision.permitted_use == "release"
    assert decision.scores["good"][0].name == "mmd"


def test_a_significantly_farther_candidate_is_not_selected():
    decision = run("worse", "good")
    assert decision.chosen == "good"
    assert "not_in_set" in codes(decision)
    assert "could_not_separate" not in codes(decision)


def test_candidates_that_cannot_be_separated_are_named_with_the_persons_needed():
    decision = run("good", "equal")
    texts = dict(decision.reasons)
    assert (
        "good and equal could not be separated with 60 validation persons"
        in (texts["could_not_separate"])
    )
    assert "would." in texts["could_not_separate"]


@pytest.mark.parametrize("gate", GATES)
def test_a_failed_gate_drops_the_nearest_candidate(gate):
    decision = run("good", "worse", outcomes={("good", gate): "fail"})
    assert decision.chosen == "worse"
    assert "gate_failed" in codes(decision)


@pytest.mark.parametrize("gate", GATES)
def test_insufficient_does_not_drop_but_keeps_the_batch_inside(gate):
    decision = run("good", outcomes={("good", gate): "insufficient"})
    assert (decision.chosen, decision.permitted_use) == ("good", "inside_controller")


def test_inside_the_set_privacy_goes_before_distance():
    plain = run("good", "equal")
    loser = ({"good", "equal"} - {plain.chosen}).pop()
    decision = run("good", "equal", outcomes={(plain.chosen, "copies"): "insufficient"})
    assert decision.chosen == loser


def test_at_equal_privacy_and_distance_the_cheaper_one_wins():
    scores, features = stage("good", "equal")
    sets = features[f.PRIMARY]
    sets["equal"] = replace(sets["good"])
    scores["candidates"]["equal"] = scores["candidates"]["good"]
    for cheap, dear in (("good", "equal"), ("equal", "good")):
        decision = d.decide(scores, {cheap: 0.1, dear: 2.0}, features)
        assert decision.chosen == cheap


def test_transfer_is_never_registered_even_alone_and_passing():
    decision = run("transfer")
    assert (decision.verdict, decision.chosen) == ("refuse", None)
    assert decision.permitted_use == "inside_controller"
    assert {"never_registered", "refused"} <= codes(decision)


def test_the_gaussian_baseline_may_win():
    assert run("gaussian", "worse", "transfer").chosen == "gaussian"


def test_nothing_is_registered_where_every_candidate_fails():
    decision = run("good", "worse", outcomes={(n, "spread"): "fail" for n in ("good", "worse")})
    assert (decision.verdict, decision.chosen) == ("refuse", None)
    assert len(decision.gates["good"]) == 4


@pytest.mark.parametrize(
    ("champion", "challenger", "verdict", "chosen"),
    [
        ("worse", "good", "register", "good"),
        ("equal", "good", "keep_champion", "equal"),
        ("good", "worse", "keep_champion", "good"),
    ],
)
def test_a_champion_is_replaced_only_by_a_significantly_nearer_one(
    champion, challenger, verdict, chosen
):
    decision = run(champion, challenger, champion=champion)
    assert (decision.verdict, decision.chosen) == (verdict, chosen)


def test_a_champion_that_fails_a_gate_is_replaced_by_any_that_does_not():
    decision = run("good", "worse", champion="good", outcomes={("good", "copies"): "fail"})
    assert (decision.verdict, decision.chosen) == ("register", "worse")


def test_a_champion_stays_where_no_challenger_passes():
    decision = run("good", "worse", champion="good", outcomes={("worse", "spread"): "fail"})
    assert (decision.verdict, decision.chosen) == ("keep_champion", "good")
    alone = run("good", champion="good")
    assert (alone.verdict, alone.chosen) == ("keep_champion", "good")


def test_equal_challengers_seldom_replace_a_champion():
    replaced = 0
    for k in range(100):
        names = {"validation": 50, "champion": 200, "challenger": 200}
        sets = {n: feature_set(m, 1000 * k + i, 0.0) for i, (n, m) in enumerate(names.items())}
        real, old, new = (s.values.astype(np.float64) for s in sets.values())
        sigma2 = metrics.frozen_bandwidth(real)
        candidates = {
            n: {
                "gates": [],
                "scores": {f.PRIMARY: {"mmd": asdict(Score(name="mmd", value=value))}},
            }
            for n, value in (
                ("champion", metrics.mmd(real, old, sigma2=sigma2).value),
                ("challenger", metrics.mmd(real, new, sigma2=sigma2).value),
            )
        }
        scores = {"extractors": {"sigma2": {f.PRIMARY: sigma2}}, "candidates": candidates}
        decision = d.decide(scores, {}, {f.PRIMARY: sets}, "champion")
        replaced += decision.verdict == "register"
    assert replaced <= 10  # 5 nominal, at most 8 promised for a larger run


def test_disagreeing_extractors_are_reported():
    scores, features = stage("good", "worse", second={"good": 0.9, "worse": 0.0})
    moved = {"validation": (60, 0, 0.8), "good": (200, 1, 0.0), "worse": (200, 2, 0.8)}
    features[f.SECOND] = {n: feature_set(*args, f.SECOND) for n, args in moved.items()}
    decision = d.decide(scores, {}, features)
    assert decision.chosen == "good"
    assert "By the region vector worse" in dict(decision.reasons)["extractor_disagreement"]


def test_the_decision_does_not_depend_on_the_order_of_candidates():
    scores, features = stage("good", "equal", "worse")
    turned = scores | {"candidates": dict(reversed(scores["candidates"].items()))}
    one, other = (d.decide(s, {}, features) for s in (scores, turned))
    assert (one.chosen, one.decision_id) == (other.chosen, other.decision_id)


def test_features_of_two_extractors_are_never_mixed():
    scores, features = stage("good")
    sets = features[f.PRIMARY]
    sets["good"] = replace(sets["good"], weights_sha256="another")
    with pytest.raises(InputError, match="different extractors"):
        d.decide(scores, {}, features)


def test_missing_features_and_folders_are_named(tmp_path):
    scores, features = stage("good")
    with pytest.raises(InputError, match="'old'"):
        d.decide(scores, {}, features, "old")
    with pytest.raises(InputError, match=r"no scores\.json"):
        d.read_scores(tmp_path)
    with pytest.raises(InputError, match="no features"):
        f.read_features(tmp_path)
