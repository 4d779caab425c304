"""Classifiers of the four sample data sets, beside the baselines that they must beat.

    python benchmarks/classify.py ../shared/data [--only ultrasound] [--repeats 1] [--leaky]

Each data set goes through ingest, prepare and classify as its preset says; one line a model:
balanced accuracy of scans, items and persons with 95 % intervals over persons. For lung
ultrasound the figures of the same stills stand beside it that were measured once with
scikit-learn alone. `--leaky` shows what a split by frame makes of them.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from rarescan.configs.schema import load_config
from rarescan.files import read_json
from rarescan.flows import verbs

PRESETS = ("ultrasound", "mri2d", "mammography", "echo")
REFERENCE = {
    # Frames, by person, five seeds of the split.
    "ultrasound": {
        "majority": 0.333,
        "metadata": 0.557,
        "source": 0.761,
        "thumbnail_lr": 0.673,
        "thumbnail_rf": 0.710,
        "nearest": 0.715,
    },
}
LEAKY_REFERENCE = {
    "ultrasound": {
        "metadata": 0.981,
        "thumbnail_lr": 0.933,
        "thumbnail_rf": 0.975,
        "nearest": 0.970,
    },
}


def main() -> None:
    """Run the presets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=PRESETS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--leaky", action="store_true")
    parser.add_argument("--work", type=Path, default=None, help="keep the folders here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for name in [options.only] if options.only else PRESETS:
            measure(options.data, work, name, options.repeats, leaky=options.leaky)


def measure(data: Path, work: Path, name: str, repeats: int, *, leaky: bool) -> None:
    """Run one preset and print its table."""
    source = data / name
    config = load_config(
        name,
        [
            f"source.path={source}",
            f"classify.repeats={repeats}",
            f"classify.leaky={'true' if leaky else 'false'}",
        ],
    )
    cohort = verbs.ingest(config, source, work / name / "cohort")
    prepared = verbs.prepare(config, cohort, work / name / "prepared")
    start = time.monotonic()
    place = work / name / ("leaky" if leaky else "classifiers")
    result = read_json(verbs.classify(config, prepared, place) / "classification.json")
    print(f"\n{name}: {time.monotonic() - start:.0f} s, {result.get('n_persons', 0)} persons")
    print(result["verdict"]["sentence"])
    reference = (LEAKY_REFERENCE if leaky else REFERENCE).get(name, {})
    for model, units in sorted(result.get("models", {}).items()):
        known = f"  (reference, frames: {reference[model]:.3f})" if model in reference else ""
        print(f"  {model:13s}" + "  ".join(_figure(unit, units) for unit in units) + known)


def _figure(unit: str, units: Any) -> str:
    score = units[unit]["balanced_accuracy"]
    if score is None or score["value"] is None:
        return f"{unit}: insufficient"
    return f"{unit} {score['value']:.3f} [{score['low']:.2f}, {score['high']:.2f}]"


if __name__ == "__main__":
    main()
