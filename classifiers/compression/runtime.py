"""ONNX Runtime on the CPU with one thread, and what it costs there.

`open_session` and `run_session` score images; `latencies` times several models in turn, and
`peak_memory_mb` runs one in a process of its own. Nothing heavy is imported, so that the memory
of that process is the model's and not that of a training library.
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rarescan.cohort.contracts import FloatArray
from rarescan.errors import MissingExtraError
from rarescan.processes import one_thread_environment

BATCHES = (1, 16)
_WARM_UP = 2
_PROFILED = 5
_PRODUCT = re.compile("Conv|Gemm|MatMul")
_KILOBYTE = 1024 / 1e6


class Taken(NamedTuple):
    """What one call took."""

    seconds: float
    """On the clock."""
    cpu_seconds: float


def require_runtime() -> None:
    """Raise unless ONNX Runtime, of the extra `onnx`, is installed."""
    try:
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        raise MissingExtraError(
            "ONNX Runtime is not installed.", remedy="Install it: pip install 'rarescan[onnx]'."
        ) from None


def open_session(model: bytes, *, profile: str = "") -> Any:
    """Return an ONNX Runtime session on the CPU with one thread; `profile` begins a file's name."""
    require_runtime()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling, options.profile_file_prefix = bool(profile), profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, images: FloatArray) -> FloatArray:
    """Return the probabilities of images, in one call whatever their number."""
    values = np.ascontiguousarray(images, dtype=np.float32)
    probabilities: FloatArray = session.run(None, {"images": values})[0]
    return probabilities


def latencies(
    runs: Mapping[str, Callable[[FloatArray], Any]], images: FloatArray, *, repeats: int
) -> dict[str, dict[int, list[Taken]]]:
    """Return what each model takes for 1 and for 16 images, call by call.

    The models take turns, so that whatever else the machine does falls on all of them: the
    ratio of two models' i-th calls holds on a busy machine, seconds on the clock do not.

    Parameters
    ----------
    runs : mapping
        Name -> function that scores a batch.
    images : float32 array, shape (16 or more, ...)
        What is scored.
    repeats : int
        Calls of each model with one image; a quarter of them, five at least, with 16.
    """
    taken: dict[str, dict[int, list[Taken]]] = {name: {b: [] for b in BATCHES} for name in runs}
    for batch in BATCHES:
        some = images[:batch]
        for run in runs.values():
            for _ in range(_WARM_UP):
                run(some)
        n = repeats if batch == 1 else max(repeats // 4, 5)
        for _ in range(n):
            for name, run in runs.items():
                start, cpu = time.perf_counter(), time.process_time()
                run(some)
                cpu = time.process_time() - cpu
                taken[name][batch].append(Taken(time.perf_counter() - start, cpu))
    return taken


def ratio(before: Sequence[Taken], after: Sequence[Taken]) -> float:
    """Return how many times less computing calls need: the median over calls made side by side.

    CPU seconds count, not those on the clock: with one thread they are the same on an idle
    machine, and on a busy one they leave out the others.
    """
    pairs = zip(before, after, strict=True)
    return float(np.median([b.cpu_seconds / max(a.cpu_seconds, 1e-9) for b, a in pairs]))


def product_milliseconds(model: bytes, image: FloatArray) -> tuple[float, float]:
    """Return what one call takes for sums of products (convolutions, matrices), and for the rest.

    ONNX Runtime's own profile of the second half of some calls; the rest holds what int8 adds:
    numbers turned into 8 bits and back between the layers.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, profile=f"{folder}/calls")
        for _ in range(2 * _PROFILED):
            run_session(session, image)
        events = json.loads(Path(session.end_profiling()).read_text())
    taken: dict[str, list[float]] = {}
    for event in events:
        name = event.get("args", {}).get("op_name")
        if name and event["name"].endswith("_kernel_time"):
            taken.setdefault(f"{name} {event['name']}", []).append(event["dur"] / 1000)
    sums = {True: 0.0, False: 0.0}
    for name, each in taken.items():
        sums[bool(_PRODUCT.search(name.split()[0]))] += sum(each[-_PROFILED:]) / _PROFILED
    return sums[True], sums[False]


def peak_memory_mb(model: Path, shape: Sequence[int]) -> float:
    """Return the largest memory (MB) of a process that opens a model and scores 16 images."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, str(model), *map(str, shape)],
        capture_output=True,
        text=True,
        check=True,
        env=one_thread_environment(),
    )
    return float(json.loads(done.stdout)["peak_memory_mb"])


def main(arguments: Sequence[str]) -> None:
    """Score 16 images and write the process's own peak memory to stdout."""
    session = open_session(Path(arguments[0]).read_bytes())
    shape = tuple(int(edge) for edge in arguments[1:])
    run_session(session, np.full((BATCHES[-1], *shape), 0.5, np.float32))
    sys.stdout.write(json.dumps({"peak_memory_mb": round(_own_peak_mb(), 1)}) + "\n")


def _own_peak_mb() -> float:
    # ru_maxrss keeps the parent's peak across fork and exec on Linux; VmHWM begins anew.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * _KILOBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


if __name__ == "__main__":
    main(sys.argv[1:])
