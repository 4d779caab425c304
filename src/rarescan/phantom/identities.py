"""Invented names, numbers and dates, as a hospital's headers carry them.

`draw_identity` is the way in. Nobody is meant: the lists are the commonest names of several
countries, combined by chance.
"""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from rarescan.phantom.persons import Person, stream
from rarescan.phantom.spec import PhantomConfig

_FAMILY = (
    *("Müller", "Schmidt", "Schneider", "Weiß", "Fischer", "Meyer", "Wagner", "Jiménez"),
    *("García", "López", "Rossi", "Bianchi", "Dubois", "Lefèvre", "Smith", "Brown"),
    *("Jones", "Novák", "Kowalski", "Jensen", "Hansen", "Öztürk", "Nguyen", "Silva"),
)
_GIVEN = {
    "F": ("Anna", "María", "Käthe", "Sophie", "Renée", "Helen", "Ingrid", "Giulia", "Zoë"),
    "M": ("Hans", "José", "Jürgen", "Pierre", "Karl", "John", "Lars", "Marco", "Tomás"),
}
_STREETS = ("Bahnhofstraße", "High Street", "Via Roma", "Rue de la Gare", "Calle Mayor")
_TOWNS = ("Neustadt", "Newtown", "Villanova", "Villeneuve", "Villanueva")
_FIRST_DAY = date(2019, 1, 7)
_DAYS = 5 * 365


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a hospital knows of a person besides the images."""

    patient_id: str
    name: str
    """Family^Given."""
    birth_date: date
    study_date: date
    study_time: str
    """HHMMSS."""
    address: str
    telephone: str
    accession: str
    physician: str
    weight_kg: int

    @property
    def age(self) -> str:
        """Whole years at the study, as DICOM writes them: 064Y."""
        before = (self.study_date.month, self.study_date.day) < (
            self.birth_date.month,
            self.birth_date.day,
        )
        return f"{self.study_date.year - self.birth_date.year - before:03d}Y"


def draw_identity(config: PhantomConfig, person: Person) -> Identity:
    """Return the invented identity of one person; numbers never repeat within an export."""
    rng = stream(config, person.index, "identity")
    study = _FIRST_DAY + timedelta(days=int(rng.integers(_DAYS)))
    birth = study - timedelta(days=round(person.age_years * 365.2425))
    hour, minute, second = rng.integers((7, 0, 0), (19, 60, 60))
    place = int(rng.integers(len(_TOWNS)))
    return Identity(
        patient_id=f"{100 + rng.integers(900)}{person.index:05d}",
        name=f"{_pick(rng, _FAMILY)}^{_pick(rng, _GIVEN[person.sex])}",
        birth_date=birth,
        study_date=study,
        study_time=f"{hour:02d}{minute:02d}{second:02d}",
        address=f"{_STREETS[place]} {1 + rng.integers(140)}, {_TOWNS[place]}",
        telephone=f"+00 555 {rng.integers(10**6):06d}",
        accession=f"A{rng.integers(10**8):08d}",
        physician=f"{_pick(rng, _FAMILY)}^{_pick(rng, _GIVEN['F'])}^^Dr.",
        weight_kg=int(rng.normal(66 if person.sex == "F" else 80, 9)),
    )


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
