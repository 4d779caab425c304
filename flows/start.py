"""The way into the flows from the command line.

`run_verb` runs one verb, `run_augment` the whole way, `run_together` several, `run_utility` the
benchmark; each finds or starts a Prefect server first. Prefect is imported here only once its
settings stand in the environment, because it reads them when it is imported.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from rarescan.configs.schema import RunConfig, plain_config
from rarescan.errors import MissingExtraError
from rarescan.flows.plan import Places, hide_paths, require_apart, with_phantom_tables, workers_of
from rarescan.flows.server import owner, prefect_server, quiet_prefect

Plain = dict[str, Any]


def run_verb(config: RunConfig, verb: str, arguments: Plain, *, overwrite: bool = False) -> Path:
    """Run one verb as a flow of its own name; return the folder that it wrote."""
    _require_device(config)
    quiet_prefect()
    from rarescan.flows.augment import single

    named = single.with_options(name=verb, flow_run_name=config.name)
    plain = hide_paths(with_phantom_tables(config))
    arguments = {key: value and SecretStr(value) for key, value in arguments.items()}
    return Path(_on_a_server(config, lambda: named(verb, plain, arguments, overwrite=overwrite)))


def run_augment(config: RunConfig, *, overwrite: bool = False) -> Path:
    """Run the whole way; return the report's path."""
    _require_device(config)
    quiet_prefect()
    from rarescan.flows.augment import augment

    named = augment.with_options(flow_run_name=config.name)
    plain = hide_paths(plain_config(config))
    _on_a_server(config, lambda: named(plain, overwrite=overwrite))
    return Places(config.root).report


def run_together(configs: Sequence[RunConfig], *, overwrite: bool = False) -> list[Path]:
    """Run several whole ways side by side; return the reports' paths.

    Raises
    ------
    SettingError
        Two of them would write into one place (`plan.require_apart`).
    """
    require_apart(configs)
    for config in configs:
        _require_device(config)
    quiet_prefect()
    from rarescan.flows.augment import together

    named = together.with_options(flow_run_name=", ".join(config.name for config in configs))
    plain = [hide_paths(plain_config(config)) for config in configs]
    _on_a_server(configs[0], lambda: str(named(plain, overwrite=overwrite)))
    return [Places(config.root).report for config in configs]


def run_utility(config: RunConfig, *, overwrite: bool = False) -> Path:
    """Run the utility benchmark; return the folder of its results."""
    _require_device(config)
    quiet_prefect()
    from prefect.task_runners import ThreadPoolTaskRunner

    from rarescan.flows.utility import utility

    side_by_side: Any = ThreadPoolTaskRunner(max_workers=workers_of(config))
    named = utility.with_options(flow_run_name=config.name, task_runner=side_by_side)
    plain = hide_paths(plain_config(config))
    return Path(_on_a_server(config, lambda: named(plain, overwrite=overwrite)))


def _on_a_server(config: RunConfig, work: Callable[[], str]) -> str:
    from prefect import tags
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    with (
        prefect_server(Path(config.runs) / ".prefect") as api,
        # Heartbeats cost a second at the end of every flow; our own server watches the process.
        temporary_settings({PREFECT_API_URL: api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        tags("rarescan", owner()),
    ):
        return work()


def _require_device(config: RunConfig) -> None:
    """Raise when a GPU is asked for and none is there."""
    if config.device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise MissingExtraError(
            "device is 'cuda' and this machine has no CUDA device that torch can use.",
            remedy="Run with --device cpu, or on a machine with a GPU and a CUDA build of torch.",
        )
