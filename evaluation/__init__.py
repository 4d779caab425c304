"""Evaluation: is a generator good enough, does it copy persons, does its batch help.

- `evaluate.write_scores`: features, distances, gates of every candidate -> `scores.json`
- `decide.read_scores`, `decide.decide`: gates and ranking -> `Decision`
- `gain.summarise`: predictions of the arms -> the gain with its interval and a verdict
- `report.write_report`: one page that says it all, with what readers said (`feedback.summarise`)
- `drift.drift`, `monitor.write_page`: new scans against those that the champion learned from

As a library, on arrays, tensors, feature sets, feature files and folders of images:
`from rarescan.evaluation import fid, kid, inception_score, mmd, prdc, copy_test, compare`. Below
them lie `metrics` (numbers), `conventions` (other packages' numbers), `moments` and `streamed`
(what does not fit into memory) and `metric_classes` (torchmetrics). `external.open_extractor` makes
networks of others look at images.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rarescan.evaluation.comparison import Comparison, compare
    from rarescan.evaluation.library import copy_test, fid, inception_score, kid, mmd, prdc

__all__ = [
    "Comparison",
    "compare",
    "copy_test",
    "fid",
    "inception_score",
    "kid",
    "mmd",
    "prdc",
]


def __getattr__(name: str) -> Any:
    """Find a public name on first use (PEP 562), so that settings are read without numpy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = "comparison" if name in ("Comparison", "compare") else "library"
    return getattr(import_module(f"rarescan.evaluation.{where}"), name)
