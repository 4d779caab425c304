"""The tutorial's generators as cells: searched, trained for the budget, kept.

`network` and `latents` are the ways in. Sizes and rates are chosen by their loss on persons whom
neither the training nor the judge of the table looks at; T1 has none to spare, so that there the
training persons say it (a budget is a few epochs). A search is no part of the budget.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import tutorial
from studies import Study

from rarescan.cohort.contracts import Condition, Part
from rarescan.cohort.store import open_volumes
from rarescan.files import read_json, run_step, write_json
from rarescan.seeds import derive
from rarescan.threads import one_thread

AUTOENCODER = "tutorial-autoencoder"
COST, WEIGHTS = "cost.json", "weights.safetensors"
SEED = 11
SEARCHES = 15
"""The share of the budget that each try gets, inverted."""


def _images(study: Study, part: Part = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Return a part's images, and the number of each one's diagnosis."""
    cohort = study.cohort()
    rows = cohort.indices(part)
    volumes = torch.from_numpy(np.asarray(open_volumes(cohort)[rows], np.float32))
    return volumes, labels([cohort.scans[i].condition for i in rows], study)


def _search_part(study: Study) -> Part:
    return "test" if study.others else "train"


def labels(conditions: Sequence[Condition], study: Study) -> torch.Tensor:
    """Return the number of each condition's diagnosis."""
    return torch.tensor([int(c.diagnosis == study.question.positive) for c in conditions])


def _autoencoder(study: Study, budget_s: float) -> Path:
    """Return the folder of the autoencoder, of the sizes that reconstruct best."""

    def fitted(sizes: tutorial.Sizes, seconds: float) -> tuple[torch.nn.Module, tutorial.Spent]:
        torch.manual_seed(derive(SEED, AUTOENCODER))
        net = tutorial.autoencoder(sizes)
        images = tutorial.with_channel(_images(study)[0], sizes)
        with one_thread():
            return net, tutorial.train_autoencoder(net, images, sizes.rate, seconds)

    def build(work: Path) -> None:
        found = []
        for sizes in tutorial.AUTOENCODERS:
            net, spent = fitted(sizes, budget_s / SEARCHES)
            held = tutorial.with_channel(_images(study, _search_part(study))[0], sizes)
            error = tutorial.reconstruction_error(net, held)
            found.append({**asdict(sizes), "steps": spent.steps, "error": error})
            _say("autoencoder", found[-1])
        best = min(range(len(found)), key=lambda i: found[i]["error"])
        sizes = tutorial.AUTOENCODERS[best]
        net, spent = fitted(sizes, budget_s / 2)
        held = tutorial.with_channel(_images(study, _search_part(study))[0], sizes)
        final = {"searched": found, "chosen": best, "error": _quality(net, held)}
        _say("autoencoder", {"steps": spent.steps, **final["error"]})
        _keep(net, work, spent, final)

    recipe = study.recipe("autoencoder", {"budget_s": budget_s})
    return run_step(study.root / AUTOENCODER, recipe, build)


def _quality(net: torch.nn.Module, held: torch.Tensor) -> dict[str, float]:
    """Return the error of reconstructions beside that of the mean image."""
    mean = (held - held.mean(0)).abs().mean()
    return {"reconstruction": tutorial.reconstruction_error(net, held), "mean_image": float(mean)}


def _say(what: str, told: Mapping[str, Any]) -> None:
    words = ", ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items()
    )
    logging.getLogger("rarescan").warning("tutorial %s: %s", what, words)


def _keep(
    net: torch.nn.Module, work: Path, spent: tutorial.Spent, about: Mapping[str, Any]
) -> None:
    safetensors.torch.save_file(net.state_dict(), work / WEIGHTS)
    told = {"cpu_seconds": round(spent.seconds, 1), "steps": spent.steps, **about}
    write_json(work / COST, told)


def latents(study: Study, budget_s: float) -> tutorial.Latents:
    """Return the trained autoencoder, frozen, with the scale of its latents."""
    folder = _autoencoder(study, budget_s)
    sizes = tutorial.AUTOENCODERS[read_json(folder / COST)["chosen"]]
    net = tutorial.autoencoder(sizes)
    net.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    net.eval().requires_grad_(False)
    torch.manual_seed(derive(SEED, "scale"))
    images = tutorial.with_channel(_images(study)[0], sizes)
    return tutorial.Latents(net, tutorial.latent_scale(net, images), sizes.factor)


def network(study: Study, objective: tutorial.Objective, budget_s: float) -> Path:
    """Return the folder of a trained network; both have the rate that is best for the DDPM."""

    def fitted(rate: float, seconds: float) -> tuple[torch.nn.Module, tutorial.Spent, float]:
        codec = latents(study, budget_s)
        torch.manual_seed(derive(SEED, objective))
        net, (images, classes) = tutorial.network(2), _images(study)
        spent = tutorial.train_network(
            net, codec, (images[:, None], classes), objective, rate=rate, budget_s=seconds
        )
        held, theirs = _images(study, _search_part(study))
        torch.manual_seed(derive(SEED, objective, "search"))
        error = tutorial.network_error(net, codec, (held[:, None], theirs), objective)
        _say(objective, {"rate": rate, "steps": spent.steps, "error": error})
        return net, spent, error

    def build(work: Path) -> None:
        with one_thread():
            if objective == "noise":
                errors = {rate: fitted(rate, budget_s / SEARCHES)[2] for rate in tutorial.RATES}
                rate = min(errors, key=lambda one: errors[one])
            else:
                errors, rate = {}, read_json(network(study, "noise", budget_s) / COST)["rate"]
            net, spent, error = fitted(rate, budget_s / 2)
        _keep(net, work, spent, {"searched": errors, "rate": rate, "error": error})

    recipe = study.recipe("network", {"budget_s": budget_s, "objective": objective})
    return run_step(study.root / f"tutorial-{objective}", recipe, build)
