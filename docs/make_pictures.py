"""Draw the README's picture from a finished run: `make picture RUN=runs/demo`.

First real held-out persons, below them synthetic ones of the champion; first of each diagnosis in
order, none chosen by eye.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from rarescan.cohort.contracts import FloatArray
from rarescan.cohort.store import open_cohort, open_volumes, require_grid
from rarescan.evaluation.figures import planes, sheet

PERSONS = 2


def main(run: Path) -> None:
    """Write docs/pictures/real-and-synthetic.png."""
    grid = require_grid(run / "prepared")
    rows = []
    for folder, parts in (("prepared", ("validation",)), ("synthetic", ())):
        cohort = open_cohort(run / folder)
        volumes = open_volumes(cohort)
        row: list[FloatArray] = []
        for diagnosis in reversed(cohort.diagnoses()):
            chosen = [
                i
                for i in cohort.indices(*parts)
                if cohort.scans[i].condition.diagnosis == diagnosis
            ][:PERSONS]
            row += [tile for i in chosen for tile in planes(np.asarray(volumes[i]), grid).values()]
        rows.append(row)
    path = Path(__file__).parent / "pictures" / "real-and-synthetic.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(sheet(rows, grid.spacing_mm, sides=True)).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
