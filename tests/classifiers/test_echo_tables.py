from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import postgres
import pytest
from sqlalchemy import create_engine, func, inspect, select
from sqlalchemy.orm import Session

from rarescan.classifiers.echo import questions, tables
from rarescan.errors import InputError, SettingError, UnreachableError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def measured(study: str, **more: object) -> tables.Measurement:
    known = {"study_id": study, "clip_id": tables.STUDY, "model_id": "m1", "method": "biplane"}
    return tables.of_kind(tables.Measurement, {**known, "flags": "", **more})


def rows(ef: float = 55.0, study: str = "S1") -> list[tables.Table]:
    return [
        tables.Study(study_id=study, person_id="P1", sex=None),
        tables.Clip(
            clip_id="C1",
            study_id=study,
            kind="video",
            rows=112,
            columns=112,
            n_frames=np.int64(32),
            frame_time_ms=float("nan"),
            spacing_down_mm=None,
            spacing_right_mm=None,
            heart_rate_bpm=None,
            flags="",
        ),
        tables.ModelVersion(
            model_id="m1", task="measurement", weights_sha256=None, settings="{}", trained_on=None
        ),
        tables.View(clip_id="C1", model_id="m1", view="a4c", probability=None),
        measured(study, name="ef", unit="percent", value=ef),
        measured(study, name="ef_class", unit="", text="greyzone"),
        tables.of_kind(
            tables.Evaluation,
            {"model_id": "m1", "name": "dice", "method": "val", "n_persons": 4, "value": 0.95},
        ),
    ]


def utc(when: datetime) -> datetime:
    """Return a time in UTC; SQLite keeps no time zone."""
    return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'echo.sqlite'}"


def test_writing_twice_changes_nothing_and_a_change_is_one_row(url: str) -> None:
    with tables.open_tables(url) as engine:
        assert tables.put(engine, rows(), clock=lambda: NOON) == 7
        assert tables.put(engine, rows(), clock=lambda: NOON + timedelta(days=1)) == 0
        assert tables.put(engine, rows(56.0), clock=lambda: NOON + timedelta(days=2)) == 1
        with Session(engine) as session:
            assert session.scalar(select(func.count()).select_from(tables.Measurement)) == 2
            when = dict(
                session.execute(select(tables.Measurement.name, tables.Measurement.written_at))
                .tuples()
                .all()
            )
    assert utc(when["ef_class"]) == NOON
    assert utc(when["ef"]) == NOON + timedelta(days=2)


def test_t21_the_clock_is_asked_when_rows_are_written(url: str) -> None:
    times = iter([NOON, NOON + timedelta(hours=13)])
    with tables.open_tables(url) as engine:
        tables.put(engine, rows(), clock=lambda: next(times))
        tables.put(engine, rows(12.0), clock=lambda: next(times))
        with Session(engine) as session:
            later = session.scalars(
                select(tables.Measurement.written_at).where(tables.Measurement.name == "ef")
            ).one()
    assert utc(later).day == 2


def test_t21_nan_becomes_null_and_never_a_number(url: str) -> None:
    with tables.open_tables(url) as engine:
        tables.put(engine, rows(float("nan")))
        with Session(engine) as session:
            clip = session.get_one(tables.Clip, "C1")
            assert clip.frame_time_ms is None
            assert clip.n_frames == 32
        answer = questions.ask(engine, "ef", "S1")
        assert {row["name"]: row["value"] for row in answer} == {"ef": None, "ef_class": None}
        assert questions.ask(engine, "unmeasured") == [{"study_id": "S1"}]


def test_t39_names_with_quotes_are_only_names(url: str) -> None:
    evil = "S'; DROP TABLE echo_studies; --"
    with tables.open_tables(url) as engine:
        tables.put(engine, rows(study=evil))
        assert questions.ask(engine, "ef", evil)[0]["value"] == 55
        assert [row["study_id"] for row in questions.ask(engine, "studies")] == [evil]
        with pytest.raises(InputError, match="no such study"):
            questions.ask(engine, "ef", "S' OR '1'='1")


def test_a_forgotten_person_leaves_no_row_and_others_keep_theirs(url: str) -> None:
    with tables.open_tables(url) as engine:
        tables.put(engine, rows())
        others = [row for row in rows(study="S2") if not isinstance(row, tables.View)]
        for row in others[:2]:
            row.person_id, row.clip_id = "P2", "C2"  # type: ignore[attr-defined]
        tables.put(engine, others)
        assert tables.forget(engine, "P1") == 1
        assert tables.forget(engine, "P1") == 0
        assert questions.study_ids(engine) == ["S2"]
        assert questions.ask(engine, "views") == []
        assert len(questions.ask(engine, "measurements", "S2")) == 2
        assert questions.ask(engine, "models")[0]["value"] == 0.95
    if url.startswith("sqlite"):
        left = Path(url.removeprefix("sqlite:///")).read_bytes()
        assert b"P1" not in left
        assert b"P2" in left


def test_questions_have_their_answers(url: str) -> None:
    with tables.open_tables(url) as engine:
        tables.put(engine, rows())
        assert questions.ask(engine, "classes") == [{"class": "greyzone", "n": 1}]
        assert questions.ask(engine, "views") == [{"view": "a4c", "n": 1}]
        assert questions.ask(engine, "models")[0]["value"] == 0.95
        assert questions.ask(engine, "flagged") == []
        assert len(questions.ask(engine, "measurements", "S1")) == 2
        assert questions.study_ids(engine) == ["S1"]
        with pytest.raises(InputError, match="no question"):
            questions.ask(engine, "everything")


def test_all_rows_are_written_or_none(url: str) -> None:
    broken = [*rows(), tables.View(clip_id="C2", model_id="m1", view=None, probability=None)]
    with pytest.raises(InputError), tables.open_tables(url) as engine:
        tables.put(engine, broken)
    with tables.open_tables(url) as engine:
        assert questions.ask(engine, "studies") == []


def test_a_bad_address_and_a_dead_database_are_told_without_the_password() -> None:
    for url in ("nonsense", "nosuchdialect://u:hunter2@host/x"):
        with pytest.raises(SettingError) as told, tables.open_tables(url):
            pass
        assert "hunter2" not in str(told.value)
    with (
        pytest.raises(UnreachableError),
        tables.open_tables("sqlite:////nonexistent-folder/x/echo.sqlite"),
    ):
        pass


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "echo.sqlite").write_bytes(b"no database at all" * 100)
    with (
        pytest.raises(InputError, match="refused"),
        tables.open_tables(f"sqlite:///{tmp_path / 'echo.sqlite'}"),
    ):
        pass


def test_tables_of_another_product_are_left_alone(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE studies (x INTEGER)")
    engine.dispose()
    with tables.open_tables(url) as ours:
        tables.put(ours, rows())
        assert "studies" in inspect(ours).get_table_names()


@pytest.mark.long
def test_a_real_postgresql_keeps_what_sqlite_keeps() -> None:
    def everything(url: str) -> None:
        for test in (
            test_writing_twice_changes_nothing_and_a_change_is_one_row,
            test_t21_the_clock_is_asked_when_rows_are_written,
            test_t21_nan_becomes_null_and_never_a_number,
            test_t39_names_with_quotes_are_only_names,
            test_a_forgotten_person_leaves_no_row_and_others_keep_theirs,
            test_questions_have_their_answers,
            test_all_rows_are_written_or_none,
        ):
            with tables.open_tables(url) as engine:
                tables.Table.metadata.drop_all(engine)
            test(url)

    with postgres.postgres() as url:
        postgres.run(url, lambda: everything(url))
