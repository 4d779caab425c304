"""Fill docs/utility.md from finished benchmarks: name their results.

    python docs/make_utility.py runs/utility/utility/utility.json runs/thinned/thinned/thinned.json

Each question has a block between `<!-- begin: NAME -->` and `<!-- end -->`, which gets verdicts,
tables and pictures; nothing else on the page is touched. NAME is the question, or the run's name
for real persons. A block that no result belongs to stays as it is.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rarescan.evaluation.page import in_words, interval, number
from rarescan.evaluation.utility_page import PICTURES, read_entries, rows_of, title, write_page

PAGE = Path(__file__).parent / "utility.md"
Entry = Mapping[str, Any]


def main(results: Sequence[Path]) -> None:
    """Write the pictures and fill the page."""
    text = PAGE.read_text()
    for result in results:
        write_page(result)
        entries = read_entries(result)
        for question in dict.fromkeys(entry["question"] for entry in entries):
            name = result.parents[1].name if question == "thinned" else question
            asked = [entry for entry in entries if entry["question"] == question]
            pictures = _pictures(result.parent / PICTURES, question, name)
            text = _filled(text, name, _block(asked, pictures))
    PAGE.write_text(text)


def _pictures(source: Path, question: str, name: str) -> list[str]:
    """Copy a question's pictures, on white; return their names."""
    found = []
    for path in sorted(source.glob(f"utility-{question}-*.svg"), reverse=True):
        target = PAGE.parent / "pictures" / path.name.replace(f"-{question}-", f"-{name}-")
        target.write_text(path.read_text().replace("<svg ", '<svg style="background:#fff" ', 1))
        found.append(target.name)
    order = ("forest", "curve", "beside")
    return sorted(found, key=lambda picture: order.index(picture[:-4].rpartition("-")[2]))


def _filled(text: str, name: str, block: str) -> str:
    pattern = re.compile(rf"(<!-- begin: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"docs/utility.md has no block for '{name}'.")
    return pattern.sub(lambda found: found[1] + block + found[2], text)


def _block(entries: Sequence[Entry], pictures: Sequence[str]) -> str:
    lines = [f"- **{title(entry)}.** {entry['sentence']}" for entry in entries]
    lines += ["", *(f"![Differences between arms](pictures/{name})" for name in pictures), ""]
    for entry in entries:
        lines += _table(entry)
    return "\n".join(lines) + "\n"


def _table(entry: Entry) -> list[str]:
    """Return an entry's arms as Markdown; the two that are compared stand in bold."""
    rows = rows_of(entry)
    beside = sorted({name for row in rows for name in row["measures"]} - {"auc"})
    words = [in_words(name, "utility_measures").partition(":")[0] for name in beside]
    names = ["arm", "kind", "AUC (sd)", "minus the best that costs nothing", *words]
    lines = [f"{title(entry)}:", "", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        auc = row["measures"]["auc"]
        cells = [
            f"**{row['label']}**" if row["best"] else row["label"],
            in_words(row["kind"], "utility_kinds").partition(":")[0],
            f"{number(auc['mean'], 3)} ({number(auc['sd'], 3)})",
            interval(row["difference"], 3, sign=True),
            *(
                number(row["measures"][n]["mean"], 3) if n in row["measures"] else ""
                for n in beside
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
