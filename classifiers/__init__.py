"""Classifiers, and whether synthetic persons help them.

`folds.run_folds`                               a classifier's honest estimate, baselines beside it
`arms.run_arms`                                 the same classifier, trained in several ways
`anomaly.run_anomaly`                           what stands out from normal persons
`compression.compress.compress`                 a smaller form that says the same
`domain.train_network`, `domain.open_network`   the network that judges generators
`train.fit`                                     the one training loop
`package.open_package`, `network.load_network`  open a trained network
`modalities.find_modality`                      what is looked at: MRI, ultrasound, films, yours
`baseline.fit_linear`                           the field's linear model
`foreign.run_foreign`                           a classifier of your own, in the same arms

For training code of your own: `from rarescan.classifiers import augmented`, real persons and
synthetic patients as a torch data set or a MONAI data list.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rarescan.classifiers.scan_dataset import augmented, read_row

__all__ = ["augmented", "read_row"]


def __getattr__(name: str) -> Any:
    """Find a public name on first use (PEP 562), so that settings are read without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("rarescan.classifiers.scan_dataset"), name)
