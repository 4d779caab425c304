"""A smaller classifier that still says the same: the table of forms, and the choice.

`compress` is the way in. Every form (half precision, int8, pruned) is made, judged on validation
persons beside the original, and timed in turn with the others; the smallest that loses no more
than allowed is judged once on test persons, and what holds there is written as `model/`, a folder
that `export.load_onnx` opens. What the reader would get wrong: times and memory are this
machine's, and a small network may be slower in int8 than before.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rarescan.classifiers.compression import agreement, quantise, runtime
from rarescan.classifiers.compression.export import OnnxClassifier
from rarescan.classifiers.compression.forms import ORIGINAL, PLAIN, Form, Persons, make_forms
from rarescan.classifiers.examples import Examples
from rarescan.classifiers.golden import invent_images
from rarescan.classifiers.network import TrainedNetwork
from rarescan.classifiers.spec import CompressConfig
from rarescan.cohort.contracts import FloatArray
from rarescan.errors import InputError
from rarescan.files import content_id, write_json
from rarescan.progress import track
from rarescan.threads import one_thread

RESULT = "compress.json"
MODEL = "model"
_SAME_SIZE = 1.05
_INT8_TOLERANCE = 0.02
"""Another CPU may round a value of 8 bits to its neighbour; another preparation moves the golden
outputs, on which the classifier is least sure, much further."""
_HALF_TOLERANCE = 2e-3


def compress(
    work: Path, trained: TrainedNetwork, persons: Persons, config: CompressConfig
) -> dict[str, Any]:
    """Write `compress.json` and the chosen model's folder `model/`; return the former's content.

    Parameters
    ----------
    work : Path
        Folder of a step; forms that an interrupted run finished are kept.
    trained : TrainedNetwork
        The original.
    persons : Persons
        Labels are places in `trained.labels.names`.
    config : CompressConfig
        Forms, limits, seed.

    Returns
    -------
    dict
        `rows`: a form a row, with balanced accuracy and loss (value, low, high over persons),
        agreement with the original's labels, bytes, bytes when zipped, milliseconds for 1 and 16
        scans, times faster than 32-bit ONNX (by CPU seconds), peak memory, share of zeros,
        and `reason` where it may not be chosen; `slow`: a sentence for each int8 form that is not
        faster; `chosen`, `confirmation`, `written`, `cpu`.

    Raises
    ------
    InputError
        There are no validation or test persons, or their scans are no use for calibration.
    """
    _require_persons(persons, trained)
    forms = make_forms(work / "forms", trained, persons, config)
    images = invent_images(trained.shape, runtime.BATCHES[-1])
    with one_thread():
        taken = runtime.latencies({f.name: f.run for f in forms}, images, repeats=config.repeats)
    answers = _judge(forms, persons.validation)
    figures = agreement.compare_all(answers, ORIGINAL, config.seed)
    rows = [
        _row(form, figures[form.name], taken[form.name], taken[PLAIN], images[0], config)
        for form in forms
    ]
    chosen = _smallest(rows)
    confirmation = _confirm(forms, chosen, persons.test, config)
    written = chosen if confirmation["outcome"] == "pass" else PLAIN
    content: dict[str, Any] = {
        "rows": rows,
        "slow": _why_slow(forms, rows, images[:1]),
        "chosen": chosen,
        "confirmation": confirmation,
        "written": written,
        "n_scans": len(persons.validation),
        "persons": {
            n: len(persons.validation.persons(i)) for i, n in enumerate(trained.labels.names)
        },
        "cpu": _cpu(),
        "settings": asdict(config),
    }
    content["table"] = table(content)
    _write_model(work / MODEL, forms, written, trained, persons, rows)
    write_json(work / RESULT, content)
    return content


def _require_persons(persons: Persons, trained: TrainedNetwork) -> None:
    for part in ("validation", "test"):
        examples: Examples = getattr(persons, part)
        if len(set(examples.labels)) < 2:
            raise InputError(
                f"The {part} persons have fewer than two of the classes "
                f"{', '.join(trained.labels.names)}.",
                remedy="Prepare a cohort in which every part has persons of each class.",
            )


def _judge(forms: Sequence[Form], examples: Examples) -> dict[str, agreement.Judged]:
    """Return every form's answers about the same scans, which are read once."""
    found: dict[str, list[FloatArray]] = {form.name: [] for form in forms}
    with one_thread():
        for position in track(range(len(examples)), "judge every form"):
            image = np.clip(examples.read([position]), 0, 1)
            for form in forms:
                found[form.name].append(form.run(image))
    return {
        name: agreement.Judged(
            person_ids=examples.person_ids,
            truth=examples.labels,
            probabilities=np.concatenate(parts),
        )
        for name, parts in found.items()
    }


def _row(
    form: Form,
    figures: Mapping[str, Any],
    taken: Mapping[int, Sequence[runtime.Taken]],
    plain: Mapping[int, Sequence[runtime.Taken]],
    image: FloatArray,
    config: CompressConfig,
) -> dict[str, Any]:
    zipped = memory = None
    if form.path is not None:
        zipped = len(zlib.compress(form.path.read_bytes()))
        memory = runtime.peak_memory_mb(form.path, image.shape)
    faster = {str(b): round(runtime.ratio(plain[b], t), 2) for b, t in taken.items()}
    return {
        "form": form.name,
        **figures,
        "bytes": form.n_bytes,
        "bytes_zipped": zipped,
        "milliseconds": {
            str(b): round(1000 * float(np.median([call.seconds for call in calls])), 3)
            for b, calls in taken.items()
        },
        "times_faster": faster,
        "peak_memory_mb": memory,
        "zeros": round(form.zeros, 4),
        "reason": _reason_against(form, figures, config),
    }


def _reason_against(form: Form, figures: Mapping[str, Any], config: CompressConfig) -> str:
    """Return why a form may not be chosen; empty where it may."""
    if form.path is None:
        return "torch, for comparison"
    if figures["loss"]["value"] > config.most_loss + 1e-9:
        return f"loses more than {config.most_loss:g} balanced accuracy"
    if figures["agreement"] < config.least_agreement:
        return f"agrees on fewer than {config.least_agreement:.0%} of the scans"
    return ""


def _smallest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the smallest form that may be chosen; among equals in size the quickest."""
    allowed = [row for row in rows if not row["reason"]]
    if not allowed:
        return PLAIN
    limit = _SAME_SIZE * min(row["bytes"] for row in allowed)
    near = [row for row in allowed if row["bytes"] <= limit]
    return str(min(near, key=lambda row: row["milliseconds"]["1"])["form"])


def _confirm(
    forms: Sequence[Form], chosen: str, test: Examples, config: CompressConfig
) -> dict[str, Any]:
    """Judge the chosen form and the original on test persons."""
    pair = [form for form in forms if form.name in (ORIGINAL, chosen)]
    figures = agreement.compare_all(_judge(pair, test), ORIGINAL, config.seed)
    against = _reason_against(next(f for f in pair if f.name == chosen), figures[chosen], config)
    return {
        "outcome": "fail" if against else "pass",
        "reason": against,
        "original": figures[ORIGINAL],
        "chosen": figures[chosen],
    }


def _why_slow(
    forms: Sequence[Form], rows: Sequence[Mapping[str, Any]], image: FloatArray
) -> list[str]:
    """Say of every int8 form that is not faster than 32 bits where its time goes."""
    paths = {form.name: form.path for form in forms if form.path is not None}
    slow = [r["form"] for r in rows if r["form"].startswith("int8") and r["times_faster"]["1"] <= 1]
    names = [PLAIN, *slow] if slow else []
    taken = {n: runtime.product_milliseconds(paths[n].read_bytes(), image) for n in names}
    vnni = f"{'' if quantise.multiplies_int8() else 'no '}VNNI"
    return [
        f"{name} is not faster for one scan: sums of products take {taken[name][0]:.3g} ms instead "
        f"of {taken[PLAIN][0]:.3g} (a CPU with {vnni}), all else {taken[name][1]:.3g} instead of "
        f"{taken[PLAIN][1]:.3g}, because values turn into 8 bits and back between the layers."
        for name in slow
    ]


def _cpu() -> dict[str, Any]:
    import onnxruntime  # type: ignore[import-untyped]

    return {
        "has": quantise.cpu_has("avx2", "avx512_f", *quantise.INT8, *quantise.BF16),
        "int8_in_one_instruction": quantise.multiplies_int8(),
        "onnxruntime": onnxruntime.__version__,
    }


def _write_model(
    folder: Path,
    forms: Sequence[Form],
    written: str,
    trained: TrainedNetwork,
    persons: Persons,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    path = next(form.path for form in forms if form.name == written)
    if path is None:
        raise ValueError(f"{written} has no file")
    tolerances = {"int8_static": _INT8_TOLERANCE, "int8_dynamic": _INT8_TOLERANCE}
    package = OnnxClassifier(
        model=path.read_bytes(),
        shape=trained.shape,
        classes=trained.labels.names,
        tolerance=tolerances.get(written, _HALF_TOLERANCE if written == "fp16" else 1e-4),
        about={
            "form": written,
            "modality": trained.modality.name,
            "scheme": trained.labels.scheme,
            "input": "stored values 0 to 1, shape (n, *shape); the preparation is in the file",
            "aggregation": "mean of the probabilities: scan, item, person",
            "training_persons": content_id(sorted(set(persons.train.person_ids))),
            "figures": next(dict(row) for row in rows if row["form"] == written),
        },
    )
    package.save(folder)


def table(content: Mapping[str, Any]) -> str:
    """Return what `compress` found as text: a form a line, then the choice."""
    head = (
        f"{'form':13s} {'MB':>7s} {'zipped':>7s} {'bal. acc. [95 %]':>20s} {'loss [95 %]':>23s} "
        f"{'agree':>6s} {'ms 1':>8s} {'ms 16':>8s} {'faster':>12s} {'memory':>7s} {'zeros':>6s}"
    )
    return "\n".join([head, *(_line(row) for row in content["rows"]), *_sentences(content)])


def _line(row: Mapping[str, Any]) -> str:
    right, loss = row["balanced_accuracy"], row["loss"]
    taken, faster = row["milliseconds"], row["times_faster"]
    zipped = "" if row["bytes_zipped"] is None else f"{row['bytes_zipped'] / 1e6:.2f}"
    memory = "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}"
    return (
        f"{row['form']:13s} {row['bytes'] / 1e6:7.2f} {zipped:>7s} "
        f"{right['value']:6.3f} [{right['low']:.2f}, {right['high']:.2f}] "
        f"{loss['value']:+7.3f} [{loss['low']:+.3f}, {loss['high']:+.3f}] "
        f"{row['agreement']:6.1%} {taken['1']:8.2f} {taken['16']:8.1f} "
        f"{faster['1']:5.2f} {faster['16']:5.2f}x {memory:>7s} {row['zeros']:6.0%} {row['reason']}"
    ).rstrip()


def _sentences(content: Mapping[str, Any]) -> list[str]:
    confirmed = content["confirmation"]
    counts = ", ".join(f"{n} {name}" for name, n in content["persons"].items())
    small = "" if content["rows"][0]["sufficient"] else " Too few to read anything from intervals."
    loss, agree = confirmed["chosen"]["loss"]["value"], confirmed["chosen"]["agreement"]
    outcome = f"on test persons it loses {loss:+.3f} and agrees on {agree:.1%}"
    if confirmed["outcome"] != "pass":
        outcome += f": it {confirmed['reason']}, so that {content['written']} is written"
    return [
        f"Judged on {content['n_scans']} scans of validation persons ({counts}).{small}",
        *content["slow"],
        f"Chosen: {content['chosen']}; {outcome}.",
    ]
