"""Serve the whole way and the watch over its champion on schedules, from one long-lived process.

`serve_local` is the way in. Each run happens in a process of its own, on the configured Prefect
server or on one that ends with this process.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rarescan.configs.schema import RunConfig, plain_config
from rarescan.errors import SettingError
from rarescan.flows.server import prefect_server

_log = logging.getLogger("rarescan")


def serve_local(configs: Sequence[RunConfig]) -> None:
    """Serve what each configuration has a schedule for, until the process is stopped.

    `schedule` starts the whole way, `monitor.schedule` a look at `monitor.cohort`.

    Raises
    ------
    SettingError
        A configuration has no schedule, or one to watch nothing.
    """
    for config in configs:
        _require_work(config)
    with prefect_server(Path(configs[0].runs) / ".prefect", schedules=True) as api:
        from prefect import serve

        deployments = [made for config in configs for made in _deployments(config)]
        _log.info("Serving %d schedules on %s; stop with Ctrl-C.", len(deployments), api)
        # Pausing on shutdown is Prefect's default and would silently end the schedule.
        serve(*deployments, pause_on_shutdown=False)


def _require_work(config: RunConfig) -> None:
    if not config.schedule and not config.monitor.schedule:
        raise SettingError(
            f"The run '{config.name}' has no schedule.",
            remedy='Set `schedule` or `monitor.schedule` to a cron line, for example "0 2 * * 6".',
        )
    if config.monitor.schedule and not config.monitor.cohort:
        raise SettingError(
            f"The run '{config.name}' has `monitor.schedule` and no cohort to look at.",
            remedy="Set monitor.cohort to a folder that `rarescan prepare` writes.",
        )


def _deployments(config: RunConfig) -> list[Any]:
    from rarescan.flows.augment import augment, single

    plain = plain_config(config)
    common: dict[str, Any] = {"tags": ["rarescan"], "concurrency_limit": 1}
    made: list[Any] = []
    if config.schedule:
        made.append(
            augment.to_deployment(
                name=config.name, cron=config.schedule, parameters={"config": plain}, **common
            )
        )
    if config.monitor.schedule:
        places = {"run": str(config.root), "cohort": config.monitor.cohort}
        made.append(
            single.to_deployment(
                name=f"{config.name} monitor",
                cron=config.monitor.schedule,
                parameters={"verb": "monitor", "config": plain, "arguments": places},
                **common,
            )
        )
    return made
