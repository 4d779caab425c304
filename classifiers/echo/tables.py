"""Results of echocardiography as relational tables: an SQLite file beside them, or any database.

`open_tables` connects and makes what is missing, `put` writes rows so that writing them twice
changes nothing, `forget` removes a person; `questions.ask` answers what users ask. A value that is
not known is NULL, never -1 and never 1; the time of writing comes from the caller.

Whoever knows the tables of USAL's system finds them here:

    raw.metadata, clean.meta_lite                        clips
    views.instances_unique_master_list                   studies, clips
    views.machines_*, instances_w_labels, ...            clips.flags, views
    classification.predictions, probabilities_*          views
    classification.ground_truths                         views (model `table`)
    segmentation.predictions                             segmentations (path in place of bytea)
    segmentation.ground_truths                           segmentations (model `table`)
    measurement.calculations, ground_truths              measurements
    classification|segmentation|measurement.evaluations  evaluations
    model_name columns                                   model_versions
    raw.a_*, raw.measurement_abstract_rpt (Xcelera)      not kept: views are told by pictures
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    DateTime,
    Engine,
    ForeignKey,
    create_engine,
    delete,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from rarescan.errors import InputError, SettingError, UnreachableError
from rarescan.files import content_id

Clock = Callable[[], datetime]

EF = "ef"
EF_CLASS = "ef_class"
STUDY = ""
"""In place of a clip: the value belongs to the whole study."""
TABLE = "table"
"""The model of what a table of the source said."""


class Table(DeclarativeBase):
    """All tables."""


Row = TypeVar("Row", bound=Table)


class Study(Table):
    """One examination of one person."""

    __tablename__ = "echo_studies"
    study_id: Mapped[str] = mapped_column(primary_key=True)
    person_id: Mapped[str] = mapped_column(index=True)
    sex: Mapped[str | None]


class Clip(Table):
    """One film of a study."""

    __tablename__ = "echo_clips"
    clip_id: Mapped[str] = mapped_column(primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey(Study.study_id), index=True)
    kind: Mapped[str]
    rows: Mapped[int | None]
    columns: Mapped[int | None]
    n_frames: Mapped[int | None]
    frame_time_ms: Mapped[float | None]
    spacing_down_mm: Mapped[float | None]
    spacing_right_mm: Mapped[float | None]
    heart_rate_bpm: Mapped[float | None]
    flags: Mapped[str]


class ModelVersion(Table):
    """A network, a rule or a table: whatever said something of a clip."""

    __tablename__ = "echo_model_versions"
    model_id: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[str]
    """`views`, `segmentation` or `measurement`."""
    weights_sha256: Mapped[str | None]
    settings: Mapped[str]
    """JSON."""
    trained_on: Mapped[str | None]
    """Hash of the persons."""


class View(Table):
    """Which view a clip shows."""

    __tablename__ = "echo_views"
    clip_id: Mapped[str] = mapped_column(ForeignKey(Clip.clip_id), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.model_id), primary_key=True)
    view: Mapped[str]
    probability: Mapped[float | None]
    written_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Segmentation(Table):
    """The masks of one chamber in one clip, in a file."""

    __tablename__ = "echo_segmentations"
    clip_id: Mapped[str] = mapped_column(ForeignKey(Clip.clip_id), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.model_id), primary_key=True)
    chamber: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str]
    """Relative to the results' folder."""
    n_frames: Mapped[int]
    sha256: Mapped[str]
    written_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Measurement(Table):
    """One measured value of a clip, or of a study where `clip_id` is empty."""

    __tablename__ = "echo_measurements"
    measurement_id: Mapped[str] = mapped_column(primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey(Study.study_id), index=True)
    clip_id: Mapped[str]
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.model_id))
    name: Mapped[str] = mapped_column(index=True)
    method: Mapped[str]
    beat: Mapped[int | None]
    """None: of all beats together."""
    value: Mapped[float | None]
    unit: Mapped[str]
    text: Mapped[str | None]
    """A class, where the value is no number."""
    flags: Mapped[str]
    written_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Evaluation(Table):
    """How good a model was, over persons."""

    __tablename__ = "echo_evaluations"
    evaluation_id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey(ModelVersion.model_id))
    name: Mapped[str]
    value: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    n_persons: Mapped[int]
    method: Mapped[str]
    written_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


def now() -> datetime:
    """Return the time, in UTC; the clock of those who have none of their own."""
    return datetime.now(UTC)


@contextmanager
def open_tables(url: str | URL) -> Iterator[Engine]:
    """Connect to a database, make the tables that are missing, and disconnect at the end.

    Parameters
    ----------
    url : str or URL
        As SQLAlchemy has it: `sqlite:///runs/echo.sqlite`, `postgresql+psycopg://host/name`.

    Raises
    ------
    SettingError
        The URL is none, or its driver is not installed.
    UnreachableError
        The database does not answer.
    """
    try:
        parsed = make_url(url)
        engine = create_engine(parsed)
    except (ArgumentError, ModuleNotFoundError, ValueError):
        # The URL may hold a password, and is not repeated.
        raise SettingError(
            "The address of the database is no SQLAlchemy URL of an installed driver.",
            remedy="Write for example sqlite:///echo.sqlite or postgresql+psycopg://host/name "
            "(pip install 'rarescan[service]').",
        ) from None
    try:
        Table.metadata.create_all(engine)
        yield engine
    except OperationalError as error:
        raise UnreachableError(
            f"The database ({parsed.get_backend_name()}) does not answer or cannot be written.",
            remedy="Check its address and rights, and repeat the command: nothing is written "
            "twice.",
        ) from error
    except DatabaseError as error:
        raise InputError(
            f"The database ({parsed.get_backend_name()}) refused what was written to it.",
            remedy="Name a database whose echo_ tables were made by this version, or an empty one.",
        ) from error
    finally:
        engine.dispose()


def put(engine: Engine, rows: Iterable[Table], *, clock: Clock = now) -> int:
    """Write rows, each once: new ones are added, changed ones changed, equal ones left alone.

    Rows are compared by their keys; `written_at` is the clock's at the last change. All rows are
    written or none.

    Returns
    -------
    int
        How many rows were added or changed.
    """
    at = clock()
    changed = 0
    try:
        with Session(engine) as session, session.begin():
            for row in rows:
                changed += _put(session, row, at)
                # At once, because later rows refer to this one by its key alone.
                session.flush()
    except StaleDataError:
        raise InputError(
            "Somebody else wrote the same results at the same time.", remedy="Repeat the command."
        ) from None
    return changed


def _put(session: Session, row: Table, at: datetime) -> bool:
    kind = type(row)
    columns = {c.key: _storable(getattr(row, c.key)) for c in kind.__table__.columns}
    columns |= {"written_at": at} if "written_at" in columns else {}
    key = tuple(columns[c.key] for c in kind.__table__.primary_key)
    known = session.get(kind, key)
    if known is None:
        session.add(kind(**columns))
        return True
    differs = [
        name
        for name, value in columns.items()
        if name != "written_at" and getattr(known, name) != value
    ]
    for name in [*differs, "written_at"] if differs else []:
        if name in columns:
            setattr(known, name, columns[name])
    return bool(differs)


def _storable(value: Any) -> Any:
    """Return NULL for what is not a finite number, and Python's own numbers."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


_NAMED_BY = {
    Measurement.__tablename__: ("study_id", "clip_id", "model_id", "name", "method", "beat"),
    Evaluation.__tablename__: ("model_id", "name", "method"),
}


def of_kind(kind: type[Row], values: Mapping[str, Any]) -> Row:
    """Return a row of a table from the values that have its columns' names; others are left out.

    Measurements and evaluations get the key that the same figure always has.
    """
    parts = _NAMED_BY.get(kind.__tablename__)
    if parts:
        key = next(iter(kind.__table__.primary_key)).name
        values = {**values, key: content_id([values.get(part) for part in parts])}
    return kind(**{c.key: values.get(c.key) for c in kind.__table__.columns})


def forget(engine: Engine, person: str) -> int:
    """Remove a person's studies with everything that hangs on them; return how many there were.

    Evaluations, which are figures of many persons, stay until they are written again.
    """
    own = select(Study.study_id).where(Study.person_id == person)
    clips = select(Clip.clip_id).where(Clip.study_id.in_(own))
    with Session(engine) as session, session.begin():
        found = len(session.scalars(own).all())
        for kind, condition in (
            (Measurement, Measurement.study_id.in_(own)),
            (Segmentation, Segmentation.clip_id.in_(clips)),
            (View, View.clip_id.in_(clips)),
            (Clip, Clip.study_id.in_(own)),
            (Study, Study.person_id == person),
        ):
            session.execute(delete(kind).where(condition))
    if engine.dialect.name == "sqlite":
        # What was deleted stays in a file's free pages until they are given up.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM")
    return found
