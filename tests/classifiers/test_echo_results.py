from rarescan.classifiers.echo import results
from rarescan.classifiers.echo.rows import _evaluations

CLIPS = [
    {"clip_id": f"C{k}", "person_id": f"P{k // 2}", "view": view}
    for k, view in enumerate(("a4c", "a2c", "a4c", "a2c", None, None))
]


def test_t20_a_wrong_view_is_counted_wrong() -> None:
    said = {"C0": ("a4c", 0.9), "C1": ("a4c", 0.8), "C2": ("a4c", 0.7), "C4": ("a2c", 0.6)}
    views = results.join_views(CLIPS, said, "net")
    found = results._views_against_table(CLIPS, views)
    assert found is not None
    assert (found["n_clips"], found["n_persons"]) == (3, 2)
    assert found["wrong"][0] == 1 / 3
    rows = list(_evaluations({"agreement": None, "views": found}))
    assert [(name, n) for _, name, _, n in rows] == [("wrong_view", 2)]


def test_the_table_counts_more_than_the_network_and_both_are_kept() -> None:
    views = results.join_views(CLIPS, {"C1": ("a4c", 0.8), "C4": ("a2c", 0.6)}, "net")
    assert [views[f"C{k}"]["view"] for k in range(6)] == [
        "a4c", "a2c", "a4c", "a2c", "a2c", results.UNKNOWN,
    ]  # fmt: skip
    assert [answer["view"] for answer in views["C1"]["answers"]] == ["a2c", "a4c"]
    assert views["C4"]["answers"] == [{"model": "net", "view": "a2c", "probability": 0.6}]
    assert results._views_against_table(CLIPS, results.join_views(CLIPS, {}, "")) is None
