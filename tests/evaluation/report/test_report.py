"""The page says the verdict first, fails on no missing part, and needs nothing from outside."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarescan.errors import InputError
from rarescan.evaluation.collect import collect
from rarescan.evaluation.page import duration, interval, number, percent
from rarescan.evaluation.report import write_report
from rarescan.files import read_json, write_json

VOID = {"meta", "img", "br", "link", "path", "use"}
STAGES = ("prepare", "evaluate", "refuse", "select", "generate")


class Page(HTMLParser):
    """What a reader, a screen reader and a browser find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "svg" not in self.open and data.strip():
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(whole_run: Path) -> str:
    return write_report(whole_run).read_text()


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_verdict_stands_before_everything_but_the_title(html: str, page: Page) -> None:
    sentence = "No evidence that synthetic scans help this classifier."
    assert page.words[:3] == [
        f"{sentence} rarescan report: demo",
        "rarescan report: demo",
        sentence,
    ]
    body = html[html.index("<body>") :]
    assert body.index(sentence) < min(body.index(tag) for tag in ("<table", "<img", "<svg", "<nav"))


def test_the_page_tells_the_whole_way_with_its_numbers(page: Page) -> None:
    start = page.text.index("What to do next.")
    chain = page.text[start : page.text.index("What came in")]
    for part in (
        "42 persons in",
        "40 scans of 40 persons used",
        "3 generators compared",
        "VAE champion",
    ):
        assert part in chain
    assert "10 synthetic persons +0.013 gain in AUC" in chain


def test_numbers_are_shown_with_interval_and_n(page: Page) -> None:
    assert "+0.013 (−0.040 to +0.066)" in page.text
    assert "0.031 0.011 to 0.051" in page.text
    assert "8 real, 10 synthetic persons" in page.text
    assert "0 of 10 were flagged as a copy" in page.text
    assert "FID, KID and IS are shown for comparison and did not decide" in page.text


def test_a_bound_on_copies_is_claimed_only_where_the_check_proved_its_power(
    quick_run: Callable[..., Path], page: Page
) -> None:
    assert "finding none promises nothing" in page.text
    assert "25.9" not in page.text
    run = quick_run(n_persons=5)
    path = run / "evaluation" / "scores.json"
    scores = read_json(path)
    scores["candidates"]["vae"]["privacy"]["outcome"] = "pass"
    write_json(path, scores)
    text = Page(write_report(run).read_text()).text
    assert "fewer than 25.9 % of such scans are copies that this check can detect" in text


def test_what_was_left_out_says_whether_a_person_must_look(page: Page) -> None:
    assert "localizer 2 not needed, skipped LOCALIZER" in page.text
    assert "shows no head 1 set aside for a person to look at NOT_HEAD" in page.text
    assert "trunc pixels 1 set aside for a person to look at TRUNC_PIXELS" in page.text


def test_how_well_persons_hide_among_each_other_is_said(page: Page) -> None:
    assert "The smallest such group has 2 of 40 persons; 0 are alone in theirs." in page.text


def test_outcomes_are_words_with_symbols_never_colour_alone(page: Page) -> None:
    assert {"✓ pass", "✕ fail", "? insufficient"} <= set(page.words)


def test_report_json_holds_what_the_page_was_rendered_from(whole_run: Path, html: str) -> None:
    assert read_json(whole_run / "report.json") == collect(whole_run)
    assert "NaN" not in (whole_run / "report.json").read_text()


def test_every_picture_and_plot_has_words_for_those_who_cannot_see_it(page: Page) -> None:
    images = page.all("img")
    assert len(images) == 6 + 4 + 6
    assert all(len(image["alt"]) > 20 for image in images)
    assert len({image["alt"] for image in images}) == len(images)
    plots = [tag for tag in page.all("div") if tag.get("role") == "img"]
    assert len(plots) == len(page.all("svg")) == 11
    assert all(len(plot["aria-label"]) > 20 for plot in plots)
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(images) + len(plots)


def test_tables_headings_and_language_are_as_screen_readers_need_them(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("caption")) == len(page.all("table")) >= 10
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {link["href"][1:] for link in page.all("a")}
    assert targets <= set(ids)


def test_nothing_comes_from_outside_and_nothing_runs(html: str, page: Page) -> None:
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/webp;base64,"))
        assert not [name for name in attributes if name.startswith("on")]
    assert not page.all("script")
    assert "@import" not in html
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert [m["content"] for m in page.all("meta") if "http-equiv" in m] == [policy]


def test_the_page_is_small_enough_to_send(html: str) -> None:
    assert len(html.encode()) < 1_500_000


def test_every_tag_is_closed(page: Page) -> None:
    assert page.open == []


def test_the_same_run_gives_the_same_bytes(
    whole_run: Path, html: str, make_run: Callable[..., Path]
) -> None:
    assert write_report(make_run()).read_text() == html
    names = {path.name for path in whole_run.iterdir() if path.is_file()}
    assert names == {"report.html", "report.json"}


def test_no_pseudonym_or_path_is_on_the_page(whole_run: Path, html: str) -> None:
    text = re.sub(r"base64,[^\"]*", "", html)
    for hidden in ("P00", "Q00", "site0", str(whole_run.parent)):
        assert hidden not in text


@pytest.mark.parametrize("until", STAGES)
def test_a_run_without_its_later_parts_says_so_in_words(
    quick_run: Callable[..., Path], until: str
) -> None:
    text = write_report(quick_run(until=until, n_persons=20)).read_text()
    page = Page(text)
    assert page.open == []
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", page.text)
    assert "No classifier was retrained in this run." in page.text
    expected = {
        "prepare": "No generator has been trained in this run.",
        "evaluate": "No decision has been taken in this run.",
        "refuse": "no candidate registered",
        "select": "registered as champion",
        "generate": "10 synthetic persons from seed 7",
    }
    assert expected[until] in page.text


def test_scores_that_are_missing_are_said_to_be_not_measured(
    quick_run: Callable[..., Path],
) -> None:
    run = quick_run(n_persons=20)
    path = run / "evaluation" / "scores.json"
    scores = read_json(path)
    one = scores["candidates"]["vae"]
    one["scores"] = {"domain-train": {}}
    one |= {"gates": [], "regions": {}}
    one["privacy"] |= {"nearest": [], "canary_power": None, "upper_bound": None}
    one["condition_fidelity"]["auc"] = None
    write_json(path, scores | {"floor": {}, "network": {"auc": None, "accuracy": None}})
    page = Page(write_report(run).read_text())
    assert "VAE, champion not measured not measured not measured not measured" in page.text
    assert not re.search(r"\b(None|nan|Undefined)\b", page.text)


def test_hostile_names_stay_text(quick_run: Callable[..., Path]) -> None:
    name = "<script>alert(1)</script>\"'><img src=x onerror=y>$x$"
    run = quick_run(patient=name, n_persons=20)
    text = write_report(run).read_text()
    page = Page(text)
    assert not page.all("script")
    assert not [tag for tag, attributes in page.tags if "onerror" in attributes]
    assert name in page.words


def test_volumes_on_another_grid_are_not_shown_as_if_they_were_comparable(
    quick_run: Callable[..., Path],
) -> None:
    run = quick_run(n_persons=20)
    for path in run.glob("*/samples/*/rarescan/volumes.npy"):
        np.save(path, np.zeros((10, 4, 4, 4), np.float32))
    (run / "synthetic" / "rarescan" / "volumes.npy").unlink()
    page = Page(write_report(run).read_text())
    assert not page.all("img")
    assert "The volumes of the champion are not in this folder" in page.text


def test_a_champion_of_an_earlier_run_is_shown_by_its_batch(quick_run: Callable[..., Path]) -> None:
    run = quick_run(n_persons=20)
    path = run / "decision" / "decision.json"
    decision = read_json(path)
    decision["champion"] |= {"candidate": "champion-2", "family": "older"}
    write_json(path, decision | {"verdict": "keep_champion", "chosen": None})
    page = Page(write_report(run).read_text())
    assert "the earlier champion stays" in page.text
    synthetic = [i for i in page.all("img") if i["alt"].startswith("synthetic scans")]
    assert [image["alt"].split(":")[0] for image in synthetic] == [
        "synthetic scans, diagnosis bvFTD"
    ]
    assert "There is no synthetic scan of this diagnosis." in page.text


def test_phantoms_are_called_phantoms_and_persons_personal_data(
    quick_run: Callable[..., Path], page: Page
) -> None:
    run = quick_run(until="prepare", n_persons=5)
    (run / "phantom").mkdir()
    text = Page(write_report(run).read_text()).text
    assert "simulated on the computer" in text
    assert "simulated on the computer" not in page.text
    assert "still personal data" in page.text


def test_the_report_of_nothing_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.00"),
        (0.8, "0.800"),
        (-0.01234, "−0.0123"),
        (152.3, "152"),
        (123456, "123,456"),
        (0.0000341, "0.0000341"),
        (None, "not measured"),
    ],
)
def test_numbers_keep_three_digits_without_exponents(value: float | None, shown: str) -> None:
    assert number(value) == shown


@given(
    value=st.floats(1e-6, 1e4),
    below=st.floats(0, 1e3),
    above=st.floats(0, 1e3),
)
def test_a_shown_interval_reads_back_and_holds_its_value(
    value: float, below: float, above: float
) -> None:
    shown = interval({"value": value, "low": value - below, "high": value + above})
    found = [
        float(part.replace("−", "-").replace(",", "")) for part in re.findall(r"[−\d.,]+", shown)
    ]
    largest = max(abs(value), abs(value - below), abs(value + above))
    assert found == pytest.approx(
        [value, value - below, value + above], abs=0.051 * largest + 0.5e-9
    )
    assert found[1] <= found[0] <= found[2]


def test_a_score_without_interval_says_so() -> None:
    assert interval({"value": 1.6, "low": None, "high": None}) == "1.6 (no interval)"
    assert interval(None) == "not measured"
    assert interval({"value": None}) == "not measured"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(12.5, "12.5 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (None, "not measured")],
)
def test_durations_are_read_at_a_glance(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_shares_are_percent() -> None:
    assert percent(0.0149, 1) == "1.5\N{NO-BREAK SPACE}%"
    assert percent(None) == "not measured"


def test_whether_the_network_of_a_candidate_was_used_is_said_in_words(page: Page) -> None:
    assert "Diffusion: the network was not used" in page.text
    assert "GAN: training went back to its last good state 1 time," in page.text


def test_the_ranking_says_who_could_not_be_separated_and_what_would_settle_it(page: Page) -> None:
    assert "How the candidates were ranked, on 8 validation persons" in page.text
    assert "Could not be separated: VAE, Diffusion. About 147 validation persons" in page.text
    assert "Diffusion 0.031 0.011 to 0.051 0.0200 ± 0.0300 0.62 ✓ yes not measured" in page.text
    assert "By the features regions GAN would have been chosen." in page.text
    assert "VAE −0.0200 ± 0.0100 0.02" in page.text
    assert "These persons have served 2 decisions; each test was made at 0.0250." in page.text


def test_what_the_checks_can_see_stands_beside_what_they_saw(page: Page) -> None:
    saw = "2 of 10 2.5 % to 55.6 % ventricles 2, fluid, share 1"
    assert f"VAE 62 % not measured {saw} yes: noise or a pattern" in page.text
    blurs = "0.3 voxel in 41 of 100 runs; 0.5 voxel in 100 of 100 runs"
    assert f"GAN 62 % {blurs} {saw} no" in page.text
    assert "SYN0007 ventricles, fluid, share" in page.text


def test_variety_stands_beside_that_of_real_persons(page: Page) -> None:
    assert "VAE 0.93 0.88 to 0.98 0.61 0.59 to 0.63 not measured" in page.text


def test_attacks_on_membership_are_shown_with_interval_and_persons(page: Page) -> None:
    nearest = "by its distance to the nearest synthetic person (needs the batch only)"
    assert f"{nearest} 0.51 0.36 to 0.65 24 8 0.15" in page.text
    assert "by its likelihood (needs the weights) 0.91 0.36 to 0.65 24 8 not tested" in page.text
    assert "does not lie nearer to training persons than strangers do" in page.text


def test_card_and_datasheet_are_linked_where_they_are(quick_run: Callable[..., Path]) -> None:
    run = quick_run(n_persons=5)
    (run / "decision" / "MODEL_CARD.md").write_text("# card")
    links = [link["href"] for link in Page(write_report(run).read_text()).all("a")]
    assert [link for link in links if not link.startswith("#")] == ["decision/MODEL_CARD.md"]


def test_copies_that_were_drawn_again_are_told_with_the_bound(
    quick_run: Callable[..., Path],
) -> None:
    run = quick_run(n_persons=5)
    path = run / "synthetic" / "batch.json"
    search = {"drawn": 203, "replaced": 3, "upper_bound": 0.0377, "blind_to": [], "n_validation": 8}
    write_json(path, read_json(path) | {"copies": search})
    text = Page(write_report(run).read_text()).text
    assert "3 of 203 were copies and were drawn again. At most 3.77" in text
    write_json(path, read_json(path) | {"copies": {**search, "blind_to": ["flipped"]}})
    text = Page(write_report(run).read_text()).text
    assert "the search is blind to mirrored copies here, so this promises nothing" in text


def test_what_readers_said_is_kept_for_later_reports(quick_run: Callable[..., Path]) -> None:
    run = quick_run(n_persons=20)
    table = run / "readers.csv"
    rows = [f"SYN{i:04d}-1,Dr Jones,{60 + i},<i>smooth</i>" for i in range(10)]
    rows += [f"P{i:04d}-1,Dr Jones,{50 + i}," for i in range(10)]
    table.write_text(
        "\n".join(["scan_id,reader,real_or_synthetic,remark", *rows, "P9,Dr Jones,1,"])
    )
    write_report(run, table)
    table.unlink()
    text = write_report(run).read_text()
    page = Page(text)
    assert "What readers said" in page.text
    assert "Rows that could not be used: 1 of 21" in page.text
    assert "<i>smooth</i>" in page.text, "escaped, so it is read as it was typed"
    assert "Jones" not in text
    assert len(page.all("svg")) == 12
