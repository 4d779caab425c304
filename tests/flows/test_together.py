"""Several modalities in one flow: side by side, one that fails stops no other, none meet."""

from pathlib import Path
from typing import Any

import pytest

from rarescan.configs.schema import RunConfig, parse_config
from rarescan.errors import InputError, SettingError
from rarescan.flows import deploy
from rarescan.flows.plan import hide_paths, require_apart


def config(name: str, **more: Any) -> RunConfig:
    return parse_config({"name": name, "registry": {"model_name": f"{name}-generator"}, **more})


def test_runs_with_names_of_their_own_go_side_by_side() -> None:
    require_apart([config("mri"), config("ultrasound"), config("echo")])


def test_two_runs_of_one_name_are_refused() -> None:
    with pytest.raises(SettingError, match="same name"):
        require_apart([config("mri"), config("mri")])


def test_two_runs_that_would_take_each_others_champion_are_refused() -> None:
    shared = {"registry": {"model_name": "generator"}}
    with pytest.raises(SettingError, match="model_name"):
        require_apart([config("mri", **shared), config("echo", **shared)])


def test_one_schedule_serves_all_of_them_and_replaces_their_own() -> None:
    from rarescan.flows.augment import together

    runs = [config("mri", schedule="0 1 * * *"), config("echo")]
    made = deploy._all_at_once(runs, "0 2 * * 6")
    assert made.name == "mri, echo"
    assert [one["name"] for one in made.parameters["configs"]] == ["mri", "echo"]
    assert made.flow_name == together.name
    with pytest.raises(SettingError, match="no schedule"):
        deploy._require_work(runs[1], whole_way=False)
    deploy._require_work(runs[1], whole_way=True)


@pytest.mark.long
@pytest.mark.prefect
@pytest.mark.slow
def test_one_that_fails_stops_none_of_the_others(
    tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from rarescan.flows import augment
    from rarescan.flows.plan import show_paths

    @flow(name="augment")
    def way(config: dict[str, Any], *, overwrite: bool = False) -> str:
        name = show_paths(config)["name"]
        if name == "bad":
            raise InputError("The table is empty.", remedy="Fill it.")
        (tmp_path / name).write_text("done")
        return str(name)

    monkeypatch.setattr(augment, "augment", way)
    plain = [hide_paths({"name": name, "path": "secret"}) for name in ("bad", "mri", "echo")]
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        assert augment.together(plain[1:]) == ["mri", "echo"]
        (tmp_path / "mri").unlink()
        with pytest.raises(InputError, match="The table is empty"):
            augment.together(plain)
    assert {path.name for path in tmp_path.iterdir()} == {"mri", "echo"}
