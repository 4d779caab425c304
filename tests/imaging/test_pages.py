import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from rarescan.cohort.contracts import Condition, Part, Scan, brain_grid
from rarescan.cohort.store import open_cohort, write_cohort, write_events
from rarescan.cohort.template import load_template
from rarescan.files import Recipe, run_step
from rarescan.imaging.pages import picture, status, write_pages
from rarescan.imaging.reasons import WORDS

MEASURES = {
    "metric": -0.5,
    "determinant": 0.9,
    "smallest_stretch": 0.9,
    "largest_stretch": 1.05,
    "brain_ml": 1500.0,
    "contrast_ordered": True,
    "snr": 20.0,
    "cjv": 0.8,
    "wrap": 0.05,
}


def event(person: str, code: str, action: str, stack: str = "ST1") -> dict[str, Any]:
    return {
        "stack_id": stack,
        "person_id": person,
        "code": code,
        "action": action,
        "detail": {},
        "n_files": 3,
    }


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """Two persons with scans (one of them twice), and everything that ingest can leave out."""

    def build(work: Path) -> None:
        scans = [
            Scan(
                scan_id=f"{person}_ses-{session}",
                person_id=person,
                session=session,
                condition=Condition(diagnosis="<b>bvFTD" if person == "RSA" else "control"),
            )
            for person, session in (("RSA", "01"), ("RSA", "02"), ("RSB", "01"))
        ]
        write_cohort(work, scans=scans, grid=None, partition={})
        write_events(
            work,
            [
                event("", "NOT_DICOM", "drop", stack=""),
                event("", "NO_IDENTITY", "quarantine"),
                event("RSA", "LOCALIZER", "drop"),
                event("RSA", "MISSING_SLICE", "quarantine"),
                event("RSB", "DATE_ABSURD", "fix"),
                event("RSC", "LOCALIZER", "drop"),
                event("RSC", "NOT_T1", "drop", stack="ST2"),
                event("RSC", "DATE_ABSURD", "fix", stack="ST2"),
                event("RSD", "LABEL_WITHOUT_SCAN", "drop", stack=""),
            ],
        )

    return run_step(tmp_path / "native", Recipe(step="ingest", schema=1), build)


CODES = {"RSA_ses-01": None, "RSA_ses-02": "NOT_HEAD", "RSB_ses-01": None}
PARTS: dict[str, Part] = {"RSA": "train", "RSB": "test"}


def test_everybody_is_somewhere_with_the_reason_why_they_came_no_further(native: Path) -> None:
    rows = status(open_cohort(native), CODES, PARTS)
    told = [(r.person_id, r.session, r.found, r.ingest, r.prepare, r.partition) for r in rows]
    assert told == [
        ("RSA", "01", "yes", "accepted", "prepared", "train"),
        ("RSA", "02", "yes", "accepted", "NOT_HEAD", "n/a"),
        # What was set apart of a person who has scans is told, what is in every study is not.
        ("RSA", "n/a", "yes", "MISSING_SLICE", "n/a", "train"),
        ("RSB", "01", "yes", "accepted", "prepared", "test"),
        ("RSC", "n/a", "yes", "LOCALIZER NOT_T1", "n/a", "n/a"),
        ("RSD", "n/a", "no", "LABEL_WITHOUT_SCAN", "n/a", "n/a"),
        ("n/a", "n/a", "yes", "NO_IDENTITY", "n/a", "n/a"),
    ]


class Page(HTMLParser):
    """The tags, addresses and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture
def page(native: Path, tmp_path: Path) -> str:
    template, grid = load_template(8.0), brain_grid(8.0)
    thumbnail = picture(template.t1, template.brain > 0.5, grid)
    results = []
    for scan_id, code in CODES.items():
        metric = -0.25 if scan_id == "RSB_ses-01" else -0.5
        results.append(
            {"scan_id": scan_id, "code": code, "measures": MEASURES | {"metric": metric}}
        )
        (tmp_path / "qc" / "scans").mkdir(parents=True, exist_ok=True)
        (tmp_path / "qc" / "scans" / f"{scan_id}.webp").write_bytes(thumbnail)
    write_pages(tmp_path, open_cohort(native), results, PARTS)
    return (tmp_path / "qc" / "index.html").read_text()


def test_the_page_needs_no_script_and_nothing_from_outside(page: str) -> None:
    read = Page(page)
    assert not {"script", "link", "iframe", "object"} & set(read.tags)
    assert all(address.startswith("data:image/webp;base64,") for address in read.addresses)
    assert len(read.addresses) == 2
    assert "<b>bvFTD" in read.text, "what is in the labels is text, not markup"


def test_the_scan_that_stands_out_comes_first_with_its_flag(page: str) -> None:
    articles = page.split("<article>")[1:]
    assert ["RSB" in a for a in articles] == [True, False]
    assert "doubtful fit" in articles[0]
    assert "flag" not in articles[1]


def test_the_page_says_what_every_code_means(page: str) -> None:
    text = " ".join(Page(page).text.split())
    for code in ("NOT_HEAD", "MISSING_SLICE", "NO_IDENTITY", "LABEL_WITHOUT_SCAN"):
        assert code in text
    assert WORDS["NOT_HEAD"] in text
    # Four persons are named or found, two of them have a scan that was prepared.
    assert re.search(r"named or found 4 3 with a scan taken in 2 3 prepared 2 2", text)


def shown(head: np.ndarray, mask: np.ndarray, spacing_mm: float) -> np.ndarray:
    sheet = Image.open(io.BytesIO(picture(head, mask, brain_grid(spacing_mm))))
    assert sheet.size == (576, 192)
    return np.asarray(sheet.convert("RGB")).astype(int)


def test_a_picture_shows_the_brain_upright_with_left_on_the_left() -> None:
    template = load_template(2.0)
    mask = template.brain > 0.5
    head = template.t1.copy()
    head[:40, 56:, 30:] = 0.0  # left, in front, above: dark
    grey = shown(head.astype(np.float32), mask, 2.0).mean(axis=2)
    axial = grey[:, 384:]
    # In front is up in the axial plane: its upper left quarter is dark.
    assert axial[40:90, 40:90].mean() < 0.4 * axial[40:90, 105:155].mean()
    assert axial[110:160, 40:90].mean() > 0.7 * axial[110:160, 105:155].mean()


def test_a_picture_shows_nothing_farther_than_a_centimetre_from_the_brain() -> None:
    template = load_template(2.0)
    mask = template.brain > 0.5
    bright = np.where(mask, template.t1, 1.0).astype(np.float32)
    axial = shown(bright, mask, 2.0)[:, 384:].max(axis=2)
    centre = np.linalg.solve(brain_grid(2.0).matrix(), [0, 0, 8, 1])[2]
    away = ndimage.distance_transform_edt(~mask[:, :, round(centre)]) * 2.0
    # One pixel a millimetre; the box is 160 mm wide, with 16 black pixels on both sides.
    far = np.kron(away.T[::-1] > 14, np.ones((2, 2), bool))
    near = np.kron((away.T[::-1] > 3) & (away.T[::-1] < 6), np.ones((2, 2), bool))
    assert axial[:, 16:176][far].max() < 40
    assert axial[:, 16:176][near].mean() > 150


def test_the_outline_is_red_where_the_mask_ends() -> None:
    template = load_template(2.0)
    ball = np.linalg.norm(np.indices(template.brain.shape).T - [40, 54, 42], axis=-1).T < 15
    red, green, _ = np.moveaxis(shown(template.t1, ball, 2.0), 2, 0)
    marked = ((red - green) > 60)[:, 384:]
    rows, columns = np.nonzero(marked)
    # A circle of 30 mm, one pixel a millimetre.
    assert columns.max() - columns.min() == pytest.approx(60, abs=4)
    assert rows.max() - rows.min() == pytest.approx(60, abs=4)


def test_600_pictures_of_noisy_1_mm_scans_fit_into_30_megabytes() -> None:
    template = load_template(1.0)
    noise = np.random.default_rng(0).normal(0, 0.05, template.t1.shape)
    head = (template.t1 + noise).astype(np.float32)
    assert len(picture(head, template.brain > 0.5, brain_grid(1.0))) * 600 * 4 / 3 < 30e6
