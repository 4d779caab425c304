"""Generative data augmentation for rare-disease MRI.

The way in is the command `rarescan` or, from Python, the rooms: `rarescan.phantom`,
`rarescan.imaging`, `rarescan.generative`, `rarescan.evaluation`, `rarescan.classifiers`,
`rarescan.registry` and `rarescan.flows`. Each room's `__init__` lists its verbs.
Nothing heavy is imported here.
"""

from pathlib import Path

from rarescan._version import VERSION as __version__

if not (Path(__file__).parent / "flows").is_dir():
    raise ImportError(
        "This copy of rarescan lost its symbolic links (src/rarescan/flows is no folder). "
        "Clone the repository with git, on a file system with links, or install the wheel."
    )

__all__ = ["__version__"]
