"""docs/utility.md: its checks exist, and results fill it without touching anything else."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from utility_table import write_result

from rarescan.files import read_json, write_json

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "utility.md"


def test_every_check_that_the_page_names_is_a_test() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert named
    assert named <= defined


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the maker with a page of its own."""
    spec = importlib.util.spec_from_file_location("maker", ROOT / "docs" / "make_utility.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = tmp_path / "docs" / "utility.md"
    (page.parent / "pictures").mkdir(parents=True)
    names = ("few", "thinned")
    page.write_text(
        "before\n"
        + "".join(f"## {n}\n<!-- begin: {n} -->\nnot measured yet\n<!-- end -->\n" for n in names)
        + "after\n"
    )
    monkeypatch.setattr(module, "PAGE", page)
    return module


def test_a_result_fills_its_blocks_and_nothing_else(maker: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "runs" / "utility").mkdir(parents=True)
    result = write_result(tmp_path / "runs" / "utility")
    asked = [(e["question"], e["model"]) for e in read_json(result)]
    kept = [e for e, of in zip(read_json(result), asked, strict=True) if of == ("few", "network")]
    write_json(result, kept[:2])
    maker.main([result])
    text = maker.PAGE.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("not measured yet") == 1, "nobody gave a result of real persons"
    assert "| **strong + knowledge** | synthetic persons |" in text
    pictures = re.findall(r"\]\(pictures/([^)]+)", text)
    assert "utility-few-curve.svg" in pictures
    assert all((maker.PAGE.parent / "pictures" / name).exists() for name in pictures)
    maker.main([result])
    assert maker.PAGE.read_text() == text


def test_a_result_without_a_place_on_the_page_is_named(maker: ModuleType, tmp_path: Path) -> None:
    maker.PAGE.write_text("nothing here")
    result = write_result(tmp_path)
    write_json(result, read_json(result)[-1:])
    with pytest.raises(SystemExit, match="no block"):
        maker.main([result])
