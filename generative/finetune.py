"""Start a network where another cohort's ended: fine-tuning from a generator of ours.

`start_from` is the way in. The Gaussian floor is the new cohort's own; the network, which only
corrects it, begins with the weights of a generator that was trained on a larger, related cohort,
and is trained on at a lower rate. That needs codes that mean the same in both cohorts: those of
the exact `haar` codec do, principal components of other persons do not.
"""

from pathlib import Path

from rarescan.errors import InputError
from rarescan.files import sha256_file
from rarescan.generative.contract import Prior
from rarescan.generative.model import WEIGHTS, StoredModel, read_model

RATE = 0.1
"""Factor on the learning rate of a network that begins with weights."""


def start_from(prior: Prior, folder: Path) -> str:
    """Give an untrained prior's networks the weights of a trained generator.

    Parameters
    ----------
    prior : Prior
        Of a family with a network, with `haar` codes; changed in place. Its floor stays.
    folder : Path
        Written by `train_generator`: same family, codec, sizes and conditions.

    Returns
    -------
    str
        SHA-256 of the source's weights, for the recipe.

    Raises
    ------
    InputError
        The folder holds no generator, or one that does not fit; says what differs.
    """
    source = read_model(folder)
    different = _differences(prior, source)
    if different:
        raise InputError(
            f"The generator to start from does not fit: {different[0]}.",
            remedy="Train from the beginning, or with the source's family, sizes and conditions "
            "(without `site` where the cohorts have other sites).",
        )
    stored = source.under("prior.")
    for name, parameter in prior.named_parameters():
        parameter.data.copy_(stored[name])
    return sha256_file(folder / WEIGHTS)


def _differences(prior: Prior, source: StoredModel) -> list[str]:
    """Return what keeps the source's weights from meaning the same here, worst first."""
    spec, encoder = prior.spec, prior.encoder
    found = []
    if spec.family != source.spec.family:
        found.append(f"it is a {source.spec.family}, not a {spec.family}")
    if not prior.players():
        found.append(f"a {spec.family} has no network")
    if (spec.codec, source.spec.codec) != ("haar", "haar"):
        found.append("its codes are not those of the haar codec, so they mean something else")
    if not source.network_kept:
        found.append("its network did not beat its own Gaussian and was left out")
    for what in ("diagnoses", "sites", "sex", "severity"):
        own, other = getattr(encoder, what), getattr(source.encoder, what)
        if own != other:
            found.append(f"{what} differ")
    if (encoder.age_years is None) != (source.encoder.age_years is None):
        found.append("only one of the two is conditioned on age")
    shapes = {n: v.shape for n, v in source.under("prior.").items()}
    unlike = [n for n, p in prior.named_parameters() if shapes.get(n) != p.shape]
    if unlike:
        found.append(f"its weights have other shapes ({len(unlike)} of them)")
    return found
