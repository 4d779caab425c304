"""A table of predictions as `rarescan classify` writes it, made from a planted truth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("regular", "pneumonia", "covid")


def about(**more: Any) -> dict[str, Any]:
    return {
        "modality": "ultrasound",
        "classes": list(CLASSES),
        "ordinal": False,
        "unit": "frame",
        "item_unit": "clip",
        "temperature": [1.5] * 5,
        "ece_before": [0.2] * 5,
        "ece_after": [0.1] * 5,
        "settings": {},
        **more,
    }


def table(
    strength: dict[str, float] | None = None,
    *,
    persons: tuple[int, ...] = (20, 20, 9),
    repeats: int = 2,
    frames: int = 3,
    seed: int = 0,
) -> pa.Table:
    """Return rows of models whose logits for the truth are raised by their strength.

    Each person has two clips of `frames` frames; noise is shared within a person, so that frames
    are no independent persons. Strength None of "majority": always the first class.
    """
    strength = (
        {"network": 2.0, "thumbnail_rf": 0.7, "majority": 0.0} if strength is None else strength
    )
    truths = np.repeat(np.arange(len(persons)), persons)
    rows = []
    for model, power in strength.items():
        for repeat in range(repeats):
            random = np.random.default_rng([seed, repeat, *model.encode()])
            folds = np.random.default_rng(repeat).permutation(len(truths)) % 5
            for person, truth in enumerate(truths.tolist()):
                own = random.normal(0, 1, len(persons))
                own[truth] += power
                for clip in range(2):
                    for frame in range(frames):
                        logits = own + random.normal(0, 0.3, len(persons))
                        p = np.exp(logits) / np.exp(logits).sum()
                        if model == "majority":
                            p = np.eye(len(persons))[0]
                        rows.append(
                            {
                                "scan_id": f"P{person:03d}-{clip}-{frame}",
                                "item_id": f"C{clip:04d}",
                                "person_id": f"P{person:03d}",
                                "source": f"S{(person % 3 if truth < 2 else 9)}",
                                "truth": truth,
                                "model": model,
                                "repeat": repeat,
                                "fold": int(folds[person]),
                                "probabilities": p.astype(np.float32).tolist(),
                                "abstained": bool(model == "network" and p.max() < 0.45),
                                "uncertainty": None if model != "network" else float(1 - p.max()),
                            }
                        )
    strings = ("scan_id", "item_id", "person_id", "source", "model")
    schema = {name: pa.string() for name in strings}
    schema |= dict.fromkeys(("truth", "repeat", "fold"), pa.int16())
    schema |= {"probabilities": pa.list_(pa.float32()), "abstained": pa.bool_()}
    return pa.Table.from_pylist(rows, schema=pa.schema({**schema, "uncertainty": pa.float32()}))


def write_folder(folder: Path, *, labelled: bool = True, maps: int = 2, **more: Any) -> Path:
    """Write what `rarescan classify` leaves; `labelled` false: too few labels to train on."""
    rows = table() if labelled else table(persons=(1, 1, 1)).slice(0, 0)
    known = {"licences": {"CC BY 4.0": 200, "": 94}, "settings": {"steps": 300}}
    known |= {} if labelled else {"insufficient": "Only 4 persons have grade 3."}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "predictions.parquet")
    (folder / "classify.json").write_text(json.dumps(about(**known, **more)))
    (folder / "maps").mkdir(exist_ok=True)
    for index in range(maps if labelled else 0):
        picture = np.random.default_rng(index).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "maps" / f"covid_{index}.png")
    return folder
