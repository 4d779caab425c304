import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def maker() -> object:
    spec = importlib.util.spec_from_file_location("maker", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", [pytest.param("reference", marks=pytest.mark.long), "reasons"])
def test_the_generated_pages_are_what_the_code_says(page: str) -> None:
    made = getattr(maker(), page)()
    assert (ROOT / "docs" / f"{page}.md").read_text() == made, "run `make docs`"


@pytest.mark.parametrize(
    "page",
    sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]),
)
def test_every_link_between_pages_leads_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_verb_of_the_readme_exists() -> None:
    from typer.main import get_command

    from rarescan.cli import beside, classify, compress, echo, grid, verbs  # noqa: F401
    from rarescan.cli.main import app

    readme = (ROOT / "README.md").read_text()
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"`rarescan ([a-z-]+)", readme)) - {"run"}
    assert named <= known
    for verb in known:
        assert re.search(rf"`(rarescan )?{verb}\b", readme), f"{verb} is not in the README"
