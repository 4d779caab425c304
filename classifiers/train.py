"""The one training loop of every classifier.

`fit` is the way in. The same number of steps whatever the examples; order, augmentation and
dropout of a step are drawn from the seed and the step's number, so two fits that differ in one
thing differ in nothing else. Without `patience` the last weights are kept: nothing is selected,
and what is watched on the way (validation persons) never touches the weights. With it they
choose among the looks. No test person ever comes here.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics.functional.classification import binary_auroc

from rarescan.classifiers.contract import Modality, group_means, person_means
from rarescan.classifiers.examples import Examples, Feed, draw
from rarescan.classifiers.losses import loss_of, mixed, targets_of
from rarescan.classifiers.network import TrainedNetwork, placed
from rarescan.classifiers.recipes import with_recipe
from rarescan.classifiers.spec import ClassifierConfig
from rarescan.errors import InputError
from rarescan.progress import Progress
from rarescan.seeds import derive
from rarescan.threads import one_thread

_LOOKS = 8
"""How often training is measured on its way."""
_LOOKS_TO_STOP = 20
"""How often where the watched persons choose when to stop."""
_WARM_UP = 0.2


@dataclass(frozen=True, kw_only=True)
class Look:
    """How training stood at one step."""

    step: int
    train_loss: float
    """Mean since the last look, as augmented and drawn."""
    watched_loss: float | None = None
    watched_auc: float | None = None
    """Over persons, not scans; of two classes."""


def fit(
    examples: Examples,
    pools: Sequence[Feed],
    config: ClassifierConfig,
    *,
    modality: Modality,
    device: torch.device,
    watched: Examples | None = None,
) -> tuple[TrainedNetwork, list[Look]]:
    """Train a network.

    Parameters
    ----------
    examples : Examples
        Labelled scans; two labels must occur.
    pools : sequence of Feed
        Which of them each batch takes, positions in `examples`.
    config : ClassifierConfig
        Steps, rates, strength of the augmentation (0: none), seed.
    modality : Modality
        Network, preparation and augmentation; `config.recipe` may name another augmentation.
    device : torch.device
        On the CPU one seed gives one network, bit for bit.
    watched : Examples, optional
        Scans to measure on. With `config.patience` they say when to stop and which look's weights
        are kept; without it they never touch the weights.

    Raises
    ------
    InputError
        Only one label occurs.
    SettingError
        The recipe is not for this modality.
    """
    _require_both(examples)
    every = max(config.steps // (_LOOKS_TO_STOP if config.patience else _LOOKS), 1)
    losses: list[float] = []
    looks: list[Look] = []
    best = _Best(config.patience)
    with (
        one_thread(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        Progress("train classifier", config.steps) as progress,
    ):
        trained = _untrained(examples, config, modality, device)
        optimizer, schedule = _optimizer(trained)
        for step in range(config.steps):
            losses.append(_step(trained, examples, draw(pools, config.seed, step), step, optimizer))
            schedule.step()
            if (step + 1) % every == 0 or step + 1 == config.steps:
                looks.append(_look(step + 1, losses, trained, watched))
                losses = []
                if best.is_enough(looks, trained):
                    break
            progress.advance(note=f"loss {losses[-1] if losses else looks[-1].train_loss:.3f}")
    best.put_back(trained)
    return trained, looks


class _Best:
    """The weights of the look at which the watched persons' loss was lowest."""

    def __init__(self, patience: int) -> None:
        self._patience, self._state = patience, dict[str, torch.Tensor]()
        self._place, self._loss = -1, float("inf")

    def is_enough(self, looks: Sequence[Look], trained: TrainedNetwork) -> bool:
        """Return whether training should stop after the last look."""
        loss = looks[-1].watched_loss
        if not self._patience or loss is None:
            return False
        if loss < self._loss:
            self._place, self._loss = len(looks), loss
            self._state = {k: v.clone() for k, v in trained.network.state_dict().items()}
        return len(looks) - self._place >= self._patience

    def put_back(self, trained: TrainedNetwork) -> None:
        """Give the network the best weights, where any were kept."""
        if self._state:
            trained.network.load_state_dict(self._state)


def _require_both(examples: Examples) -> None:
    if len(set(examples.labels)) < 2:
        present = {0: "control", 1: "patient"}.get(next(iter(examples.labels), -1), "person")
        raise InputError(
            f"A classifier cannot learn from one class: every training scan is of a {present}.",
            remedy="Name the diagnoses of this cohort in `question.positive` and "
            "`question.negative`, or add persons of the other class.",
        )


def _untrained(
    examples: Examples, config: ClassifierConfig, modality: Modality, device: torch.device
) -> TrainedNetwork:
    torch.manual_seed(derive(config.seed, "weights"))
    return TrainedNetwork(
        network=placed(modality.build(examples.shape, config, examples.classes), device),
        modality=with_recipe(modality, config.recipe),
        config=config,
        shape=examples.shape,
        device=device,
        labels=examples.classes,
    )


def _optimizer(trained: TrainedNetwork) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    config = trained.config
    optimizer = torch.optim.AdamW(
        trained.network.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    schedule = OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps + 1, pct_start=_WARM_UP
    )
    return optimizer, schedule


def _step(
    trained: TrainedNetwork,
    examples: Examples,
    positions: Sequence[int],
    step: int,
    optimizer: torch.optim.Optimizer,
) -> float:
    """Update the weights once; return the loss."""
    config, modality = trained.config, trained.modality
    random = torch.Generator("cpu").manual_seed(derive(config.seed, step, "augment"))
    images = torch.from_numpy(examples.read(positions)).to(trained.device)
    targets = targets_of([examples.labels[p] for p in positions], trained.labels, trained.device)
    images = modality.augment(images, config.augmentation, random)
    images, targets = mixed(modality.prepare(images), targets, config, step)
    torch.manual_seed(derive(config.seed, step, "dropout"))
    trained.network.train()
    with torch.autocast(trained.device.type, torch.bfloat16, enabled=config.mixed_precision):
        logits = trained.network(images)
    loss = loss_of(logits.float(), targets, examples.positive_weight)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def _look(
    step: int, losses: Sequence[float], trained: TrainedNetwork, watched: Examples | None
) -> Look:
    look = Look(step=step, train_loss=float(np.mean(losses)))
    if watched is None or len(set(watched.labels)) < 2:
        return look
    if not trained.labels.binary:
        return replace(look, watched_loss=_loss_of_persons(trained, watched))
    # Who shows two classes (one ill and one healthy breast) is a person of each.
    keys = list(zip(watched.person_ids, watched.labels, strict=True))
    scores = person_means(keys, trained.score(watched.read()))
    truth = torch.tensor([label for _, label in scores])
    score = torch.tensor(list(scores.values()))
    return replace(
        look,
        watched_loss=functional.binary_cross_entropy(
            score.clamp(1e-6, 1 - 1e-6), truth.float()
        ).item(),
        watched_auc=binary_auroc(score, truth).item(),
    )


def _loss_of_persons(trained: TrainedNetwork, watched: Examples) -> float:
    """Return the mean log-loss of persons; who shows two classes is a person of each."""
    keys = list(zip(watched.person_ids, watched.labels, strict=True))
    groups, means = group_means(keys, trained.probabilities(watched.read()))
    chosen = [row[key[1]] for key, row in zip(groups, means, strict=True)]
    return float(-np.log(np.clip(chosen, 1e-6, 1)).mean())


def as_rows(looks: Sequence[Look]) -> list[dict[str, Any]]:
    """Return the looks as plain values, for JSON."""
    return [asdict(look) for look in looks]
