"""What a fit at 1 mm takes: memory, seconds and disk, with invented codes of as many persons.

    python benchmarks/real_size.py FOLDER [--persons 300]

The images of a few phantoms go through the product's own way (`People.images_of`, the haar code);
the other persons' codes are mixtures of theirs with noise. Then everything is the product's:
`stored`, `Floor.fit`, whitening, and batches read as the loop reads them. Needs 45 MB of disk a
person, and is repeated at no cost for what is done.
"""

import argparse
import json
import resource
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import torch

from rarescan.cohort.contracts import brain_grid
from rarescan.generative.anatomy import to_image
from rarescan.generative.code_store import rows_of_tensor, rows_through, stored
from rarescan.generative.codecs import HaarCodec
from rarescan.generative.floor import Floor
from rarescan.phantom.spec import PhantomConfig
from rarescan.phantom.volumes import person_volumes
from rarescan.seeds import derive
from rarescan.threads import one_thread

_N_REAL = 4
_N_FEATURES = 10


class _Watch:
    """The most memory that this process had for itself (files on maps can be given back)."""

    def __init__(self) -> None:
        self.most, self._stop = 0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.05):
            info = process.memory_info()
            self.most = max(self.most, info.rss - info.shared)


def _mixtures(basis: torch.Tensor, rows: range) -> torch.Tensor:
    """Return codes of invented persons: half of a phantom's, half of another's, and noise."""
    made = []
    for row in rows:
        random = torch.Generator().manual_seed(derive(0, "person", row))
        weights = torch.softmax(2 * torch.randn(len(basis), generator=random), 0)
        noise = 0.03 * torch.randn(basis.shape[1:], generator=random)
        made.append(torch.tensordot(weights, basis, 1) + noise)
    return torch.stack(made)


def _encoded(n: int) -> torch.Tensor:
    encoded = torch.randn(n, _N_FEATURES, generator=torch.Generator().manual_seed(1))
    encoded[:, :3] = 0
    encoded[: n // 5, 0] = 1
    encoded[n // 5 :, 1] = 1
    return encoded


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--persons", type=int, default=300)
    asked = parser.parse_args()
    watch, seconds = _Watch(), {}

    def timed(name: str) -> None:
        seconds[name] = round(time.process_time() - sum(seconds.values()), 1)

    with one_thread(), torch.no_grad():
        grid, n = brain_grid(1), asked.persons
        config = PhantomConfig(preset="easy", patients=6, controls=8, seed=2)
        volumes = person_volumes(config, range(_N_REAL), 1)
        timed("phantoms")
        codec = HaarCodec(grid.shape, 2)
        images = [torch.from_numpy(to_image(volume)) for volume in volumes]
        timed(f"images of {_N_REAL}")
        basis = torch.cat([codec.encode(image[None]) for image in images])
        timed(f"codes of {_N_REAL}")
        del images, volumes
        shape = (n, *codec.code_shape)
        codes = stored(asked.folder / "codes.npy", shape, partial(_mixtures, basis))
        timed("invented codes")
        del basis
        floor = Floor.fit(codes, _encoded(n), 2)
        timed("Gaussian")
        whiten = rows_through(floor.whiten, rows_of_tensor(codes))
        whitened = stored(asked.folder / "whitened.npy", shape, whiten, at_a_time=n)
        timed("whitening")
        for step in range(20):
            rows = torch.randint(n, (4,), generator=torch.Generator().manual_seed(step))
            whitened[rows].sum()
        timed("20 batches of 4")
    told = {
        "persons": n,
        "code_shape": codec.code_shape,
        "cpu_seconds": seconds,
        "peak_own_gb": round(watch.most / 1e9, 2),
        "peak_with_maps_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "disk_gb": round(sum(p.stat().st_size for p in asked.folder.glob("*.npy")) / 1e9, 2),
    }
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
