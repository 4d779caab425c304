"""How pages are rendered and how numbers read on them: the same for the report and the monitor.

`render` fills a template of this room; every text is escaped. Numbers keep three significant
digits, a score and both ends of its interval the same decimals.
"""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"


@cache
def words() -> dict[str, dict[str, Any]]:
    """Return the pages' plain words: kind -> code -> text."""
    text: dict[str, dict[str, Any]] = yaml.safe_load((TEMPLATES / "words.yaml").read_text())
    return text


def in_words(code: str, kind: str) -> str:
    """Return what a code means, or the code itself, spaced, where no words are known."""
    known = words()[kind].get(code.split(":")[0])
    return str(known) if known else code.replace("_", " ")


def render(template: str, **values: Any) -> str:
    """Return a page of a template below `templates/`; a missing value is an error."""
    return _environment().get_template(template).render(words=words(), **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "interval": interval,
        "point": point,
        "span": span,
        "duration": duration,
        "percent": percent,
        "p_value": p_value,
        "in_words": in_words,
    }
    return environment


def number(value: float | None, decimals: int | None = None, *, sign: bool = False) -> str:
    """Return a number for people: three significant digits unless decimals are given."""
    if value is None:
        return "not measured"
    places = _decimals(3, value) if decimals is None else decimals
    rounded = round(value, places) + 0.0  # no minus zero
    text = f"{rounded:{'+' if sign else ''},.{places}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _decimals(digits: int, *values: float | None) -> int:
    """Return how many decimals show so many significant digits of the largest value."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return min(max(digits - 1 - math.floor(math.log10(largest)), 0), 9) if largest else 2


def _places(score: Mapping[str, Any], decimals: int | None) -> int:
    """Return the decimals that a score and both ends of its interval share."""
    shown = (score["value"], score.get("low"), score.get("high"))
    return _decimals(2, *shown) if decimals is None else decimals


def point(score: Mapping[str, Any], decimals: int | None = None, *, sign: bool = False) -> str:
    """Return a score's value with as many decimals as its interval."""
    return number(score["value"], _places(score, decimals), sign=sign)


def span(score: Mapping[str, Any], decimals: int | None = None, *, sign: bool = False) -> str:
    """Return a score's interval as `low to high`."""
    low, high = score.get("low"), score.get("high")
    if low is None or high is None:
        return "no interval"
    places = _places(score, decimals)
    return f"{number(low, places, sign=sign)} to {number(high, places, sign=sign)}"


def interval(
    score: Mapping[str, Any] | None, decimals: int | None = None, *, sign: bool = False
) -> str:
    """Return a score as `value (low to high)`."""
    if score is None or score["value"] is None:
        return "not measured"
    return f"{point(score, decimals, sign=sign)} ({span(score, decimals, sign=sign)})"


def duration(seconds: float | None) -> str:
    """Return seconds as `3 min 20 s`."""
    if seconds is None:
        return "not measured"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def percent(share: float | None, decimals: int = 0) -> str:
    """Return a share from 0 to 1 as `92 %`."""
    return "not measured" if share is None else f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def p_value(p: float | None) -> str:
    """Return a p-value with two significant digits, or that it is below one in a thousand."""
    if p is None:
        return "not tested"
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
