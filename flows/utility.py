"""`rarescan bench utility` as a Prefect flow: every draw a job of its own, then the comparison.

`flows.start.run_utility` is the way in, with as many threads as there are workers; another task
runner (`utility.with_options(task_runner=...)`: Dask, Ray) spreads the draws over machines. What
the reader would get wrong: one draw that fails stops none of the others, and its error is raised
when all have ended; repeating the command runs what is missing.
"""

from typing import Any

from prefect import flow
from prefect.futures import as_completed

from rarescan.configs.schema import parse_config
from rarescan.flows.augment import step
from rarescan.flows.plan import Places, show_paths
from rarescan.flows.utility_draw import FOLDER, draw_folders
from rarescan.progress import Progress

Plain = dict[str, Any]


@flow(name="utility")
def utility(config: Plain, *, overwrite: bool = False) -> str:
    """Train all arms in all draws side by side, then compare them."""
    plain = show_paths(config)
    run = parse_config(plain)
    on_gpu = run.device == "cuda"
    waiting = [
        step.with_options(name=folder.name).submit(
            "utility_draw", plain, {"folder": str(folder)}, overwrite=overwrite, on_gpu=on_gpu
        )
        for folder in draw_folders(run)
    ]
    with Progress("draws of the benchmark", len(waiting)) as progress:
        for _ in as_completed(waiting):
            progress.advance()
    for one in waiting:
        one.result()
    folder = str(Places(run.root).root / FOLDER)
    named = step.with_options(name="utility")
    return named("utility", plain, {"folder": folder}, overwrite=overwrite)
