"""What travels with a registered model and with a batch: model card and datasheet, in Markdown.

`model_card` tells where a version comes from, what it was chosen by and what it may be used for;
`datasheet` the same of a batch (Gebru et al.: motivation to maintenance). Nothing is measured
here. No number stands without its persons and, where one exists, its interval.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jinja2
import yaml

from rarescan._version import VERSION
from rarescan.cohort.contracts import Cohort, Grid, Scan
from rarescan.evaluation.intervals import Z95
from rarescan.evaluation.page import TEMPLATES

CARD, DATASHEET = "MODEL_CARD.md", "DATASHEET.md"
"""Names of the files."""

_USE = {"release": "outside the controller too", "inside_controller": "inside the controller only"}
_DISTRIBUTION = {
    "release": "Every gate passed: the batch may leave the controller, with this sheet and the "
    "mark in every file.",
    "inside_controller": "The batch stays with the controller of the cohort: not every gate "
    "passed, or there were too few persons to say.",
    "near_copy": "The batch never leaves the controller of the cohort: every scan is a training "
    "person's, changed, and shows that person.",
}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model card says of the model itself."""

    name: str
    version: str
    model_uri: str
    model_sha256: str
    family: str
    trained_on: str
    """Id of the prepared cohort."""
    settings: Mapping[str, Any]
    """Of the training; empty where only the registry knows the version."""
    parameters: int | None = None
    training_seconds: float | None = None


def interval_of(score: Mapping[str, Any]) -> str:
    """Return "value (low to high)" of a score's fields, or the value with "no interval"."""
    return f"{_number(score['value'])} ({_ends(score)})"


def model_card(
    decision: Mapping[str, Any], scores: Mapping[str, Any], model: ModelFacts, cohort: Cohort
) -> str:
    """Return the model card of a registered version.

    Parameters
    ----------
    decision : mapping
        `RankedDecision` as plain values; its `chosen` is the candidate that the version holds.
    scores : mapping
        `scores.json` of the evaluation that decided.
    model : ModelFacts
    cohort : Cohort
        The prepared cohort with its partition.

    Returns
    -------
    str
        Markdown with a YAML head, as model hubs read it.
    """
    chosen = decision["chosen"]
    candidate = scores["candidates"][chosen]
    persons = _persons(cohort)
    parts = Counter(cohort.partition.get(person, "") for person in persons)
    ranked = decision["selection"]
    same = set(ranked["could_not_separate"])
    return _render(
        "model_card.md",
        head=_head(decision, model, cohort, parts),
        model=asdict(model),
        settings=", ".join(f"{k} {v}" for k, v in model.settings.items()),
        rarescan_version=VERSION,
        use=_USE[decision["permitted_use"]],
        phantom=any(scan.origin == "phantom" for scan in cohort.scans),
        privacy=privacy_sentence(candidate.get("privacy")),
        kind=_kind(cohort.grid, cohort.scans),
        shown=_shown(cohort.grid, cohort.scans),
        cohort_id=cohort.cohort_id,
        licences=", ".join(sorted({s.licence for s in cohort.scans} - {""})) or "not stated",
        n_train=parts["train"],
        n_validation=parts["validation"],
        n_test=parts["test"],
        diagnoses=_by_diagnosis(cohort, persons),
        **_people(list(persons.values())),
        n_sites=len({s.site for s in cohort.scans if s.site}) or "not stated",
        decision={**decision, "selection": {**ranked, "candidates": _ranking(ranked)}},
        measures=[_measure(row) for row in decision["scores"][chosen]],
        floor=_floor(scores.get("floor") or {}),
        unseparated=sorted(same - {chosen}) if chosen in same else [],
        reasons=[text for _, text in decision["reasons"]],
        gates=[_gate(gate) for gate in decision["gates"][chosen]],
        regions=_regions(candidate.get("regions") or {}),
        fidelity=_fidelity(candidate.get("condition_fidelity") or {}),
    )


def datasheet(batch: Mapping[str, Any], scans: Sequence[Scan], grid: Grid) -> str:
    """Return the datasheet of a batch.

    Parameters
    ----------
    batch : mapping
        The batch's `batch.json`; `copies` in it, where present, is what the search for copies of
        training persons did.
    scans : sequence of Scan
        The batch's scans.
    grid : Grid
    """
    rows = []
    for diagnosis, n in sorted(Counter(s.condition.diagnosis for s in scans).items()):
        same = [s.condition for s in scans if s.condition.diagnosis == diagnosis]
        sexes = Counter(c.sex for c in same)
        ages = _ages([c.age_years for c in same])
        rows.append(
            {"diagnosis": diagnosis, "n": n, "women": sexes["F"], "men": sexes["M"], "ages": ages}
        )
    use = batch["permitted_use"]
    return _render(
        "datasheet.md",
        batch={"n": len(scans), **batch},
        use=_USE[use],
        distribution=_DISTRIBUTION["near_copy" if batch.get("near_copy_of_a_person") else use],
        diagnoses=rows,
        shown=_shown(grid, scans),
        filtered=_filtered(batch.get("copies")),
    )


def _kind(grid: Grid | None, scans: Sequence[Scan]) -> str:
    """Return what the scans are, in the plural."""
    if grid is None or grid.is_brain:
        return "skull-stripped T1-weighted brains"
    return f"pictures ({', '.join(sorted({scan.modality for scan in scans}))})"


def _shown(grid: Grid | None, scans: Sequence[Scan]) -> str:
    """Return what one scan is."""
    if grid is None:
        return "native scans"
    size = " x ".join(map(str, grid.shape))
    if grid.is_brain:
        return f"a skull-stripped T1-weighted brain, {size} voxels of {grid.spacing_mm} mm"
    size = " x ".join(map(str, grid.shape[:2]))
    planes = "a plane" if grid.shape[2] == 1 else f"{grid.shape[2]} planes"
    return f"{planes} of {size} pixels, {_kind(grid, scans)}"


def privacy_sentence(privacy: Mapping[str, Any] | None) -> str:
    """Return what may be said about copies (gate G5): flagged scans and an upper bound."""
    if not privacy:
        return "Copies of training persons were not searched for."
    if privacy.get("statement"):
        return str(privacy["statement"])
    text = f"{privacy['flagged']} of {privacy['n']} synthetic scans were flagged as copies"
    bound = privacy.get("upper_bound")
    return (
        f"{text}; at most {bound:.2%} are copies that the search can find." if bound else f"{text}."
    )


def _filtered(search: Mapping[str, Any] | None) -> str:
    """Return what the search for copies did to a batch, from `copies` in its `batch.json`."""
    if search is None:
        return "none."
    drawn, replaced = int(search["drawn"]), int(search["replaced"])
    text = (
        f"each scan was searched for copies of training persons; {replaced} of {drawn} "
        f"({replaced / drawn:.1%}) were flagged and drawn again, at most "
        f"{search['upper_bound']:.2%} of all draws are copies that the search can find "
        f"(n = {search['n_validation']} validation persons set its scale)."
    )
    blind = ", ".join(search["blind_to"])
    return f"{text} **insufficient**: the search is blind to {blind}." if blind else text


def _head(
    decision: Mapping[str, Any], model: ModelFacts, cohort: Cohort, parts: Mapping[str, int]
) -> str:
    fields = {
        "library_name": "rarescan",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["medical", "mri", "synthetic", "3d", model.family],
        "license": "other",
        "model_name": model.name,
        "version": model.version,
        "model_sha256": model.model_sha256,
        "decision_id": decision["decision_id"],
        "cohort_id": cohort.cohort_id,
        "permitted_use": decision["permitted_use"],
        "n_persons": {part: parts.get(part, 0) for part in ("train", "validation", "test")},
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _persons(cohort: Cohort) -> dict[str, Scan]:
    """Return the first scan of every person."""
    return {s.person_id: s for s in sorted(cohort.scans, key=lambda s: s.scan_id, reverse=True)}


def _by_diagnosis(cohort: Cohort, persons: Mapping[str, Scan]) -> list[dict[str, Any]]:
    counts = Counter(
        (scan.condition.diagnosis, cohort.partition.get(person, ""))
        for person, scan in persons.items()
    )
    parts = ("train", "validation", "test")
    return [
        {"diagnosis": d, **{part: counts[d, part] for part in parts}}
        for d in sorted({diagnosis for diagnosis, _ in counts})
    ]


def _people(scans: Sequence[Scan]) -> dict[str, str]:
    sexes = Counter(scan.condition.sex for scan in scans)
    unknown = f", {sexes[None]} unknown" if sexes[None] else ""
    return {
        "sexes": f"{sexes['F']} women, {sexes['M']} men{unknown} (n = {len(scans)} persons)",
        "ages": _ages([scan.condition.age_years for scan in scans]),
    }


def _ages(ages: Sequence[float | None]) -> str:
    known = [age for age in ages if age is not None]
    return f"{min(known):.0f} to {max(known):.0f} years" if known else "not stated"


def _measure(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "value_text": _number(row["value"]), "interval": _ends(row)}


def _ranking(selection: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "text": f"{interval_of(row)}, n = {row['n_real']} and {row['n_synthetic']}",
            "p_text": "nearest" if row["p_holm"] is None else _number(row["p_holm"]),
            "seconds_text": _number(row["seconds_per_scan"]),
        }
        for row in selection["candidates"]
    ]


def _gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **gate,
        "statistic_text": _number(gate["statistic"]),
        "limit_text": _number(gate["limit"]),
    }


def _floor(floor: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{name} {interval_of(row)}, n = {row['n_real']} and {row['n_synthetic']}"
        for name, row in floor.items()
        if row
    )


def _regions(regions: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
    return [
        {"region": name.replace("_", " ")}
        | {side: _effect(row[side], row[f"{side}_se"]) for side in ("real", "synthetic")}
        for name, row in regions.items()
    ]


def _effect(value: float, se: float) -> str:
    return f"{value:.2f} ({value - Z95 * se:.2f} to {value + Z95 * se:.2f})"


def _fidelity(fidelity: Mapping[str, Any]) -> list[str]:
    """Return how often the judge sees the diagnosis that was asked for, by diagnosis."""
    rows = (fidelity.get("by_diagnosis") or {}).items()
    return [
        f"Asked for {diagnosis}: the judge agrees with a share of {interval_of(row)} of "
        f"n = {row['n_synthetic']} synthetic persons."
        for diagnosis, row in rows
    ]


def _ends(score: Mapping[str, Any]) -> str:
    if score.get("low") is None or score.get("high") is None:
        return "no interval"
    return f"{_number(score['low'])} to {_number(score['high'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _render(name: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template(name).render(**values)
