import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarescan.errors import ChangedRecipeError, InputError
from rarescan.files import (
    Recipe,
    changed_keys,
    content_id,
    read_recipe,
    require_recipe,
    run_step,
    sha256_file,
    write_atomic,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def recipe(**config: object) -> Recipe:
    return Recipe(step="toy", schema=1, config=config)


def write_one(work: Path) -> None:
    (work / "result.txt").write_text("1")


def test_sha256_of_a_file_is_the_published_digest_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a") == known


@given(st.dictionaries(st.text(), JSON))
def test_an_id_depends_on_values_and_not_on_the_order_of_keys(values: dict[str, object]) -> None:
    assert content_id(values) == content_id(dict(reversed(values.items())))
    assert content_id(values) != content_id({**values, "one more key": 1})


def test_a_recipe_is_named_by_everything_except_where_its_inputs_lie() -> None:
    here = Recipe(step="s", schema=1, inputs={"a": "1"}, found_at={"a": "../a"})
    moved = Recipe(step="s", schema=1, inputs={"a": "1"}, found_at={"a": "/elsewhere"})
    other = Recipe(step="s", schema=2, inputs={"a": "1"})
    assert here.id == moved.id != other.id


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    write_atomic(path, "old")
    with pytest.raises(TypeError):
        write_atomic(path, object())  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.json"]


def test_repeating_a_step_finds_its_folder_and_builds_nothing(tmp_path: Path) -> None:
    built = []
    for _ in range(2):
        run_step(tmp_path / "out", recipe(a=1), lambda work: (built.append(1), write_one(work))[1])
    assert built == [1]
    assert (tmp_path / "out" / "result.txt").read_text() == "1"
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_another_recipe_in_the_way_is_refused_and_names_the_changed_keys(tmp_path: Path) -> None:
    run_step(tmp_path / "out", recipe(a=1, deep={"b": 2}), write_one)
    with pytest.raises(ChangedRecipeError, match=r"config\.deep\.b") as caught:
        run_step(tmp_path / "out", recipe(a=1, deep={"b": 3}), write_one)
    assert "--overwrite" in caught.value.remedy
    run_step(tmp_path / "out", recipe(a=2), write_one, overwrite=True)
    stored = read_recipe(tmp_path / "out")
    assert stored is not None
    assert stored.config == {"a": 2}


def test_a_foreign_folder_is_never_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("ten years of work")
    with pytest.raises(ChangedRecipeError, match="not written by rarescan"):
        run_step(tmp_path / "out", recipe(), write_one)
    assert (tmp_path / "out" / "thesis.doc").exists()


def test_a_step_that_failed_is_continued_by_the_same_recipe_only(tmp_path: Path) -> None:
    def half(work: Path) -> None:
        (work / "part").write_text("done")
        raise KeyboardInterrupt

    def rest(work: Path) -> None:
        (work / "found").write_text(str((work / "part").exists()))

    with pytest.raises(KeyboardInterrupt):
        run_step(tmp_path / "out", recipe(a=1), half)
    assert not (tmp_path / "out").exists()
    run_step(tmp_path / "out", recipe(a=1), rest)
    assert (tmp_path / "out" / "found").read_text() == "True"
    with pytest.raises(KeyboardInterrupt):
        run_step(tmp_path / "other", recipe(a=1), half)
    run_step(tmp_path / "other", recipe(a=2), rest)
    assert (tmp_path / "other" / "found").read_text() == "False"


def _slow_step(folder: Path) -> None:
    def build(work: Path) -> None:
        (work / "started").write_text("")
        time.sleep(60)

    run_step(folder, recipe(), build)


def test_two_processes_cannot_write_one_folder_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_slow_step, args=(tmp_path / "o",))
    process.start()
    while not (tmp_path / ".o.unfinished" / "started").exists():
        time.sleep(0.01)
    with pytest.raises(InputError, match="already writing o"):
        run_step(tmp_path / "o", recipe(), write_one)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    run_step(tmp_path / "o", recipe(), write_one)
    assert (tmp_path / "o" / "result.txt").exists()


def test_changed_keys_lists_inputs_and_seeds_too() -> None:
    old = Recipe(step="s", schema=1, seeds={"batch": 1}, inputs={"cohort": "a"})
    new = Recipe(step="s", schema=1, seeds={"batch": 2}, inputs={"cohort": "b"})
    assert changed_keys(old, new) == ["inputs.cohort", "seeds.batch"]


def test_a_missing_or_wrong_step_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rarescan prepare"):
        require_recipe(tmp_path, "prepare")
    run_step(tmp_path / "out", recipe(), write_one)
    with pytest.raises(InputError, match="made by `rarescan toy`"):
        require_recipe(tmp_path / "out", "prepare")


def test_a_recipe_on_disk_carries_its_own_id(tmp_path: Path) -> None:
    run_step(tmp_path / "out", recipe(a=1), write_one)
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["id"] == recipe(a=1).id
