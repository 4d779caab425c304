"""The ways of training that are compared, in one table: what each one changes, and nothing else.

`arm_spec` is the way in: a name of the table, or `FREE+BATCH[:USE[:SHARE]]`, one of the free arms
with a batch of synthetic persons (`strong+knowledge`, `classical+vae:all`). Light: nothing numeric
is imported here. What the reader would get wrong: `classical` is the augmentation that the
classifier has anyhow (`ClassifierConfig.recipe`), `strong` and the others are what they say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rarescan.errors import SettingError, nearest

Kind = Literal["free", "generative", "placebo", "oracle"]
ArmRecipe = Literal["none", "classical", "strong", "tones", "any_tones"]
Cells = Literal["none", "class", "site", "age"]
Use = Literal["patients", "all", "only", "placebo", "pretrain"]

SYNTHETIC = "synthetic"
"""The batch of `rarescan retrain`, of `classical_synthetic` and of the placebo."""


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """One way of training."""

    kind: Kind
    """`free` costs nothing; `generative` uses a batch; `placebo` must harm; `oracle` is trained on
    what the cohort could have been."""
    recipe: ArmRecipe = "none"
    """Augmentation: none, the classifier's own, or one of `recipes.RECIPES`."""
    cells: Cells = "class"
    """What is seen equally often: classes, and within a class sites or the halves of the ages;
    `none`: everybody, as the cohort is."""
    class_weights: bool = False
    """The loss counts patients as much as controls."""
    mix: Literal["none", "mixup"] = "none"
    landmarks: bool = False
    """Intensities of everybody, the tested persons too, at the landmarks of training controls."""
    adjust: Literal["none", "age", "site"] = "none"
    """Take off every score what age, or the site, alone gives it among training controls."""
    harmonised: bool = False
    """Everybody, the tested persons too, as the largest site would have shown them."""
    batch: str = ""
    """Name of the batch."""
    use: Use = "patients"
    """`patients`: the batch's patients take places of the real ones; `all`: every scan of it joins
    the real ones of its class and cell; `only`: it takes the places of all real patients, and of
    the controls where it has some; `placebo`: real controls called patients, as many;
    `pretrain`: as `only` for half of the steps, then real persons."""
    real_share: float | None = 0.5
    """Share of the places that real persons keep beside the batch; None: by number of persons."""


ARMS: Mapping[str, ArmSpec] = {
    "real": ArmSpec(kind="free", cells="none"),
    "oversampled": ArmSpec(kind="free"),
    "weighted": ArmSpec(kind="free", cells="none", class_weights=True),
    "mixup": ArmSpec(kind="free", recipe="classical", mix="mixup"),
    "classical": ArmSpec(kind="free", recipe="classical"),
    "strong": ArmSpec(kind="free", recipe="strong"),
    "tones": ArmSpec(kind="free", recipe="tones"),
    "any_tones": ArmSpec(kind="free", recipe="any_tones"),
    "landmarks": ArmSpec(kind="free", recipe="tones", landmarks=True),
    "site_balanced": ArmSpec(kind="free", recipe="strong", cells="site"),
    "age_balanced": ArmSpec(kind="free", recipe="classical", cells="age"),
    "age_adjusted": ArmSpec(kind="free", recipe="classical", adjust="age"),
    "site_centred": ArmSpec(kind="free", recipe="classical", adjust="site"),
    "harmonised": ArmSpec(kind="free", recipe="classical", cells="site", harmonised=True),
    "classical_synthetic": ArmSpec(kind="generative", recipe="classical", batch=SYNTHETIC),
    "placebo": ArmSpec(kind="placebo", recipe="classical", batch=SYNTHETIC, use="placebo"),
    "placebo_by_number": ArmSpec(
        kind="placebo", recipe="classical", batch=SYNTHETIC, use="placebo", real_share=None
    ),
    "oracle": ArmSpec(kind="oracle", recipe="classical"),
    "oracle_strong": ArmSpec(kind="oracle", recipe="strong"),
}
FREE = tuple(name for name, spec in ARMS.items() if spec.kind == "free")
_USES: tuple[Use, ...] = ("patients", "all", "only", "pretrain")


def arm_spec(name: str) -> ArmSpec:
    """Return what an arm does.

    Parameters
    ----------
    name : str
        A key of `ARMS`, or `FREE+BATCH[:USE[:SHARE]]`: a free arm, the name of a batch, one of
        patients (default), all, only, pretrain, and the share of the places that real persons
        keep (0.5 by default; `persons`: by their number).

    Raises
    ------
    SettingError
        There is no such arm.
    """
    if name in ARMS:
        return ARMS[name]
    base, plus, rest = name.partition("+")
    batch, _, way = rest.partition(":")
    use, _, share = way.partition(":")
    if not plus or not batch:
        raise SettingError(f"There is no arm '{name}'.", remedy=nearest(name, [*ARMS]))
    if base not in FREE or ARMS[base].harmonised:
        raise SettingError(
            f"The arm '{name}' begins with no free arm that can take a batch.",
            remedy=nearest(base, [arm for arm in FREE if not ARMS[arm].harmonised]),
        )
    uses = [known for known in _USES if known == (use or "patients")]
    if not uses:
        raise SettingError(
            f"The arm '{name}' ends with no use of a batch.", remedy=nearest(use, [*_USES])
        )
    spec = ARMS[base]
    return replace(
        spec,
        kind="generative",
        batch=batch,
        use=uses[0],
        cells="class" if spec.cells == "none" and use != "all" else spec.cells,
        real_share=_share(name, share),
    )


def _share(name: str, text: str) -> float | None:
    if text == "persons":
        return None
    try:
        share = float(text or 0.5)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise SettingError(
            f"The arm '{name}' ends with no share of real persons.",
            remedy="Write a number from 0 to below 1, or `persons`.",
        )
    return share
