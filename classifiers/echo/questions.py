"""The questions that users ask the tables of echocardiography, and their answers.

`ask` is the way in; `QUESTIONS` are what it knows.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, distinct, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from rarescan.classifiers.echo.tables import (
    EF,
    EF_CLASS,
    STUDY,
    Clip,
    Evaluation,
    Measurement,
    ModelVersion,
    Study,
    View,
)
from rarescan.errors import InputError

QUESTIONS = {
    "ef": "Ejection fraction of a study",
    "measurements": "Everything measured in a study",
    "classes": "How many studies are normal, abnormal, ...",
    "views": "How many clips show which view",
    "unmeasured": "Studies without an ejection fraction",
    "flagged": "Clips with remarks on their quality",
    "studies": "All studies",
    "models": "Models, and how good they were",
}
OF_ONE_STUDY = ("ef", "measurements")


def ask(engine: Engine, question: str, study: str = "") -> list[dict[str, Any]]:
    """Return the answer to one of `QUESTIONS` as rows of plain values.

    Raises
    ------
    InputError
        There is no such question or study, or the tables are not those of this product.
    """
    if question not in QUESTIONS:
        raise InputError(
            f"'{question}' is no question.", remedy=f"Ask one of {', '.join(QUESTIONS)}."
        )
    try:
        with Session(engine) as session:
            if question in OF_ONE_STUDY and session.get(Study, study) is None:
                raise InputError(
                    "There is no such study in the tables.",
                    remedy="List them with --question studies.",
                )
            rows = session.execute(_query(question, study)).mappings()
            return [dict(row) for row in rows]
    except SQLAlchemyError as error:
        raise InputError(
            "The tables cannot be read.", remedy="Name a database that `rarescan echo` wrote."
        ) from error


def _query(question: str, study: str) -> Any:
    value = (Measurement.name, Measurement.method, Measurement.value, Measurement.unit)
    whole = Measurement.clip_id == STUDY
    fraction = whole & (Measurement.name == EF)
    named = whole & (Measurement.name == EF_CLASS)
    known = select(Measurement.study_id).where(fraction, Measurement.value.is_not(None))
    queries: dict[str, Any] = {
        "ef": select(*value, Measurement.text, Measurement.flags).where(
            Measurement.study_id == study, whole, Measurement.name.in_((EF, EF_CLASS))
        ),
        "measurements": select(
            Measurement.clip_id, Measurement.beat, *value, Measurement.text, Measurement.flags
        )
        .where(Measurement.study_id == study)
        .order_by(Measurement.clip_id, Measurement.name, Measurement.method, Measurement.beat),
        "classes": select(
            Measurement.text.label("class"), func.count(distinct(Measurement.study_id)).label("n")
        )
        .where(named)
        .group_by(Measurement.text)
        .order_by(Measurement.text),
        "views": select(View.view, func.count(distinct(View.clip_id)).label("n"))
        .group_by(View.view)
        .order_by(View.view),
        "unmeasured": select(Study.study_id)
        .where(Study.study_id.not_in(known))
        .order_by(Study.study_id),
        "flagged": select(Clip.study_id, Clip.clip_id, Clip.flags, Measurement.flags.label("beats"))
        .outerjoin(
            Measurement,
            (Measurement.clip_id == Clip.clip_id)
            & (Measurement.name == EF)
            & Measurement.beat.is_(None),
        )
        .where((Clip.flags != "") | (func.coalesce(Measurement.flags, "") != ""))
        .order_by(Clip.clip_id),
        "studies": select(Study.study_id, Study.person_id, func.count(Clip.clip_id).label("clips"))
        .outerjoin(Clip)
        .group_by(Study.study_id, Study.person_id)
        .order_by(Study.study_id),
        "models": select(
            ModelVersion.model_id,
            ModelVersion.task,
            Evaluation.name,
            Evaluation.value,
            Evaluation.low,
            Evaluation.high,
            Evaluation.n_persons,
        )
        .outerjoin(Evaluation)
        .order_by(ModelVersion.model_id, Evaluation.name),
    }
    return queries[question]


def study_ids(engine: Engine) -> Sequence[str]:
    """Return the ids of all studies, sorted."""
    with Session(engine) as session:
        return session.scalars(select(Study.study_id).order_by(Study.study_id)).all()
