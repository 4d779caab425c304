"""The classifier's page: verdict first, persons everywhere, nothing from outside, no advice."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from classifier_table import write_folder
from PIL import Image

from rarescan.errors import InputError
from rarescan.evaluation import charts
from rarescan.evaluation.classifier_page import MAPS, RESULT, _maps, write_page
from rarescan.evaluation.page import number


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("classify"), maps=20)
    write_page(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "classifiers.html").read_text()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawings out of pages whose words are looked at."""
    for name in ("forest_plot", "roc_plot", "reliability_plot"):
        monkeypatch.setattr(charts, name, lambda *_, **__: "<svg></svg>")


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL))


def test_the_verdict_and_its_persons_come_before_any_other_figure(page: str) -> None:
    text = words(page.split("<body>")[1])
    first = re.search(r"\d\.\d", text)
    assert first is not None
    assert text.index("beats every baseline") < first.start()
    assert "over 98 clips of 49 persons" in text
    assert "9 persons of covid" in text


def test_the_page_needs_no_network_no_script_and_no_five_megabytes(page: str) -> None:
    assert len(page.encode()) < 5_000_000
    assert "<script" not in page
    outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)
    assert outside == []
    assert "default-src 'none'" in page


def test_every_table_of_models_shows_every_baseline(folder: Path, page: str) -> None:
    found = json.loads((folder / RESULT).read_text())
    tables = re.findall(r"<table><caption>One answer.*?</table>", page, re.DOTALL)
    assert len(tables) == 3
    for each in tables:
        assert each.count("<tr") == 1 + len(found["models"])
        assert "49 persons" in each
        assert "always the commonest class" in each


def test_what_stands_on_the_page_is_what_machines_read(folder: Path, page: str) -> None:
    found = json.loads((folder / RESULT).read_text())
    score = found["models"]["network"]["person"]["balanced_accuracy"]
    ends = f"{number(score['low'], 2)} to {number(score['high'], 2)}"
    assert f"{number(score['value'], 2)}<small>{ends}</small>" in page


def test_films_that_are_their_own_items_are_shown_once(tmp_path: Path, undrawn: None) -> None:
    folder = write_folder(tmp_path)
    rows = pq.read_table(folder / "predictions.parquet")
    place = rows.schema.get_field_index("item_id")
    films = rows.set_column(place, "item_id", rows["scan_id"].cast(pa.string()))
    pq.write_table(films, folder / "predictions.parquet")
    page = write_page(folder).read_text()
    assert page.count("<caption>One answer") == 2
    assert "over 294 frames of 49 persons" in page


def test_maps_are_few_small_and_described(page: str) -> None:
    assert len(re.findall('<img src="data:image/webp', page)) == 12
    assert 'alt="Map of the network' in page


def test_pictures_keep_their_colours(tmp_path: Path) -> None:
    red = np.zeros((600, 300, 3), np.uint8)
    red[..., 0] = 200
    (tmp_path / MAPS).mkdir()
    Image.fromarray(red).save(tmp_path / MAPS / "a_b.png")
    (shown,) = _maps(tmp_path / MAPS)
    assert shown["name"] == "a b"
    with Image.open(io.BytesIO(base64.b64decode(shown["picture"].split(",")[1]))) as opened:
        assert opened.size == (160, 320)
        assert np.abs(np.asarray(opened.convert("RGB")).mean(axis=(0, 1)) - [200, 0, 0]).max() < 8


def test_too_few_labels_give_a_page_that_says_so(tmp_path: Path, undrawn: None) -> None:
    page = write_page(write_folder(tmp_path, labelled=False)).read_text()
    text = words(page)
    assert "Too few persons to say" in text
    assert "Only 4 persons have grade 3." in text
    assert "Model card" in text


def test_a_leak_that_was_asked_for_stands_first(tmp_path: Path, undrawn: None) -> None:
    page = write_page(write_folder(tmp_path, leaky=True)).read_text()
    assert "not valid" in page.split("<h1>")[1][:600]


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    classes = ["<script>alert(1)</script>", "b&c", "$x_1$"]
    page = write_page(write_folder(tmp_path, classes=classes, modality="<b>x")).read_text()
    assert "<script" not in page
    assert "<b>x" not in page


def test_the_page_gives_no_advice_about_a_person(page: str) -> None:
    text = words(page).lower()
    for word in ("you should", "treatment", "likely", "all good", "see a doctor", "appointment"):
        assert word not in text
    assert "no advice about a person" in text


def test_licences_and_settings_stand_in_the_model_card(page: str) -> None:
    card = words(page.split('id="card"')[1])
    assert "CC BY 4.0: 200; not stated: 94" in card
    assert "steps" in card


def test_the_same_folder_gives_the_same_bytes(folder: Path, page: str) -> None:
    assert write_page(folder).read_text() == page


def test_a_folder_without_predictions_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rarescan classify"):
        write_page(tmp_path)
