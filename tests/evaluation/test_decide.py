"""The decision's truth table: gates, ranking, champion, permitted use."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import stats

from rarescan.cohort.contracts import FeatureSet, Gate, Score
from rarescan.errors import InputError
from rarescan.evaluation import decide as d
from rarescan.evaluation import features as f
from rarescan.evaluation import metrics
from rarescan.evaluation.ranking import Entrant
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


def run(*names: str, champion=None, earlier=(), **options):
    scores, features = stage(*names, **options)
    return d.decide(scores, {}, features, champion, SelectConfig(), earlier=earlier)


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
        "equal and good could not be separated with 60 validation persons"
        in (texts["could_not_separate"])
    )
    assert "would" in texts["could_not_separate"]


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


def twins(*names: str, **options):
    """Return scores and features of candidates that have the very same samples."""
    scores, features = stage(*names, **options)
    sets = features[f.PRIMARY]
    for name in names[1:]:
        sets[name] = replace(sets[names[0]])
        scores["candidates"][name] = scores["candidates"][names[0]]
    return scores, features


@pytest.mark.parametrize(("cheap", "dear"), [("good", "equal"), ("equal", "good")])
def test_at_equal_privacy_and_distance_the_cheaper_one_wins(cheap, dear):
    scores, features = twins("good", "equal")
    costs = {cheap: Entrant(seconds_per_scan=0.6), dear: Entrant(seconds_per_scan=1.0)}
    decision = d.decide(scores, costs, features)
    assert decision.chosen == cheap
    assert "costs less" in dict(decision.reasons)["chosen"]


def test_costs_that_a_clock_cannot_tell_apart_leave_it_to_the_simpler_family():
    scores, features = twins("a", "b", shifts={"a": 0.0, "b": 0.0})
    costs = {
        "a": Entrant(family="diffusion", seconds_per_scan=0.8),
        "b": Entrant(family="vae", seconds_per_scan=1.0),
    }
    decision = d.decide(scores, costs, features)
    assert decision.chosen == "b"
    assert "simpler family" in dict(decision.reasons)["chosen"]
    slower = {name: replace(e, seconds_per_scan=9.0) for name, e in costs.items()}
    assert d.decide(scores, slower, features).decision_id == decision.decision_id


def test_inside_the_set_the_second_extractor_decides_before_the_cost():
    scores, features = twins("good", "equal")
    moved = {"validation": (60, 0, 0.0), "good": (200, 1, 0.8), "equal": (200, 2, 0.0)}
    features[f.SECOND] = {n: feature_set(*args, f.SECOND) for n, args in moved.items()}
    decision = d.decide(scores, {"good": Entrant(seconds_per_scan=0.1)}, features)
    assert decision.chosen == "equal"
    assert "second distance" in dict(decision.reasons)["chosen"]


def test_transfer_is_never_registered_even_alone_and_passing():
    decision = run("transfer")
    assert (decision.verdict, decision.chosen) == ("refuse", None)
    assert decision.permitted_use == "inside_controller"
    assert {"never_registered", "refused"} <= codes(decision)


def test_transfer_is_known_by_its_family_whatever_its_name():
    scores, features = stage("good", "worse")
    decision = d.decide(scores, {"good": Entrant(family="transfer")}, features)
    assert decision.chosen == "worse"


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


@pytest.mark.parametrize("n_challengers", [1, 3])
def test_equal_challengers_seldom_replace_a_champion(n_challengers):
    replaced = 0
    names = [f"challenger {i}" for i in range(n_challengers)]
    for k in range(60):
        sets = {n: feature_set(200, 1000 * k + i + 1, 0.0) for i, n in enumerate(["old", *names])}
        sets["validation"] = feature_set(50, 1000 * k, 0.0)
        sigma2 = metrics.frozen_bandwidth(sets["validation"].values.astype(np.float64))
        row = asdict(Score(name="mmd", value=0.0))
        scored = {n: {"gates": [], "scores": {f.PRIMARY: {"mmd": row}}} for n in ["old", *names]}
        scores = {"extractors": {"sigma2": {f.PRIMARY: sigma2}}, "candidates": scored}
        replaced += d.decide(scores, {}, {f.PRIMARY: sets}, "old").verdict == "register"
    assert replaced <= 7  # 5 % nominal are 3


def test_every_use_of_the_same_persons_makes_a_champion_harder_to_replace():
    first = run("worse", "good", champion="worse", shifts={"worse": 0.3})
    p = first.selection["against_champion"]["good"]["p"]
    uses = int(0.05 / p) + 1
    again = run(
        "worse",
        "good",
        champion="worse",
        shifts={"worse": 0.3},
        earlier=[*(str(i) for i in range(uses - 1)), first.decision_id],
    )
    assert first.verdict == "register"
    assert again.verdict == "keep_champion"
    assert again.selection["heldout_uses"] == uses
    assert again.decision_id == first.decision_id


def test_the_numbers_of_the_ranking_stand_in_the_decision():
    decision = run("good", "equal", "worse", champion="worse")
    ranked = decision.selection
    rows = {row["id"]: row for row in ranked["candidates"]}
    assert set(rows) == {"good", "equal"}
    assert ranked["candidates"][0]["p_holm"] is None
    other = ranked["candidates"][1]
    assert other["p_holm"] == pytest.approx(other["p_vs_best"])
    assert other["farther_by"] >= 0
    assert ranked["n_persons"] == 60
    assert set(ranked["could_not_separate"]) == {"good", "equal"}
    assert ranked["persons_needed"] > 60
    assert set(ranked["against_champion"]) == {"good", "equal"}
    assert ranked["against_champion"]["good"]["difference"] < 0


def test_persons_needed_follow_the_squared_ratio_of_error_and_difference():
    decision = run("good", "equal")
    row = decision.selection["candidates"][1]
    expected = 60 * (stats.norm.isf(0.05) * row["farther_by_se"] / row["farther_by"]) ** 2
    assert decision.selection["persons_needed"] == pytest.approx(expected)


def test_fewer_than_four_synthetic_scans_are_refused():
    scores, features = stage("good")
    features[f.PRIMARY]["good"] = feature_set(3, 1, 0.0)
    with pytest.raises(InputError, match="3 synthetic scans"):
        d.decide(scores, {}, features)


def test_disagreeing_extractors_are_reported():
    scores, features = stage("good", "worse", second={"good": 0.9, "worse": 0.0})
    moved = {"validation": (60, 0, 0.8), "good": (200, 1, 0.0), "worse": (200, 2, 0.8)}
    features[f.SECOND] = {n: feature_set(*args, f.SECOND) for n, args in moved.items()}
    decision = d.decide(scores, {}, features)
    assert decision.chosen == "good"
    text = dict(decision.reasons)["extractor_disagreement"]
    assert text == "By the features 'regions' worse would have been selected."
    assert decision.selection["disagreeing"] == {"regions": ["worse"]}


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
