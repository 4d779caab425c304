"""The page that says where synthetic persons help."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from utility_table import LEVELS, write_result

from rarescan.errors import InputError
from rarescan.evaluation.charts import KINDS
from rarescan.evaluation.utility_page import read_entries, rows_of, write_page
from rarescan.files import read_json, write_json


class Text(HTMLParser):
    """The texts of a page, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found.append(" ".join(data.split()))


def texts(page: Path) -> str:
    parser = Text()
    parser.feed(page.read_text())
    return "\n".join(t for t in parser.found if t)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a result with its page beside it."""
    path = write_result(tmp_path_factory.mktemp("utility"))
    write_page(path)
    return path


def test_the_verdicts_of_all_questions_stand_before_any_figure(result: Path) -> None:
    page = result.with_name("utility.html").read_text()
    first_figure = page.index("<figure>")
    for entry in read_json(result):
        place = page.index(entry["sentence"])
        assert place < first_figure


def test_every_arm_stands_in_a_table_with_its_kind_difference_and_interval(result: Path) -> None:
    page = result.with_name("utility.html").read_text()
    rows = re.findall(r"<tr[^>]*><th scope=\"row\">(.*?)</th><td>(.*?)</td>(.*?)</tr>", page)
    assert len(rows) == len(LEVELS) * len(read_json(result))
    by_label = {label: (kind, rest) for label, kind, rest in rows}
    assert by_label["oracle"][0].startswith("oracle")
    assert by_label["strong + knowledge"][0] == "synthetic persons"
    assert all(re.search(r"<small>.*? to .*?</small>", rest) for _, _, rest in rows)


def test_kinds_differ_in_shape_not_in_colour_alone() -> None:
    kinds = [KINDS[kind] for kind in ("free", "generative", "placebo", "oracle", "baseline")]
    assert len({shape for shape, _, _ in kinds}) == len(kinds)


def test_the_best_arms_are_marked_and_kinds_are_in_order(result: Path) -> None:
    entry = read_entries(result)[0]
    rows = rows_of(entry)
    order = [row["kind"] for row in rows]
    assert order == ["free"] * 2 + ["generative"] * 2 + ["placebo", "oracle"]
    marked = {row["arm"] for row in rows if row["best"]}
    assert marked == {entry["best_free"], entry["best_generative"]}


def test_the_pictures_stand_beside_the_page_whole_and_the_same_each_time(
    result: Path, tmp_path: Path
) -> None:
    pictures = result.with_name("pictures")
    before = {p.name: p.read_bytes() for p in pictures.glob("*.svg")}
    assert set(before) == {
        "utility-few-forest.svg",
        "utility-few-curve.svg",
        "utility-confounded-forest.svg",
        "utility-confounded-beside.svg",
        "utility-age-forest.svg",
        "utility-age-beside.svg",
    }
    for data in before.values():
        assert ET.fromstring(data).tag.endswith("svg")
    # One question suffices: nothing of a picture may depend on what was drawn before.
    again = tmp_path / "utility.json"
    write_json(again, read_json(result)[:1])
    write_page(again)
    name = f"utility-{read_json(result)[0]['question']}-forest.svg"
    assert (tmp_path / "pictures" / name).read_bytes() == before[name]


def test_what_was_measured_beside_the_auc_is_named_in_words(result: Path) -> None:
    shown = texts(result.with_name("utility.html"))
    assert "AUC of the site in healthy persons" in shown
    assert "score with age: correlation" in shown
    assert "age_correlation" not in shown


def test_ids_are_unique_and_nothing_is_fetched(result: Path) -> None:
    page = result.with_name("utility.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "<script" not in page


def test_an_arms_name_cannot_write_into_the_page(result: Path, tmp_path: Path) -> None:
    entry = read_json(result)[-1]
    entry["arms"]["<b>strong"] = entry["arms"]["strong"]
    copy = tmp_path / "utility.json"
    write_json(copy, {"entries": [entry]})
    assert "<b>strong" not in write_page(copy).read_text()


def test_refused_batches_and_a_placebo_that_does_not_bite_are_said(
    result: Path, tmp_path: Path
) -> None:
    entry = read_json(result)[-1]
    entry["arms"]["strong+knowledge"]["refused"] = 3
    copy = tmp_path / "utility.json"
    write_json(copy, [entry | {"bites": False}])
    shown = texts(write_page(copy))
    assert "batch refused 3 times" in shown
    assert "cannot tell arms apart" in shown
    assert "cannot tell arms apart" not in texts(result.with_name("utility.html"))


def test_without_a_result_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rarescan bench"):
        write_page(tmp_path / "utility.json")
    write_json(tmp_path / "utility.json", {"entries": []})
    with pytest.raises(InputError, match="no result"):
        write_page(tmp_path / "utility.json")
