"""Serve the whole way and the watch over its champion on schedules, from one long-lived process.

`serve_local` is the way in. Each run happens in a process of its own, on the configured Prefect
server or on one that ends with this process.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rarescan.configs.schema import RunConfig, plain_config
from rarescan.errors import SettingError
from rarescan.flows.plan import require_apart
from rarescan.flows.server import prefect_server

_log = logging.getLogger("rarescan")


def serve_local(configs: Sequence[RunConfig], together: str = "") -> None:
    """Serve what each configuration has a schedule for, until the process is stopped.

    `schedule` starts the whole way, `monitor.schedule` a look at `monitor.cohort`. With `together`,
    a cron line, one flow goes all the whole ways side by side at that time, and the configurations'
    own `schedule` does not count.

    Raises
    ------
    SettingError
        A configuration has no schedule, or one to watch nothing.
    """
    if together:
        require_apart(configs)
    for config in configs:
        _require_work(config, whole_way=bool(together))
    with prefect_server(Path(configs[0].runs) / ".prefect", schedules=True) as api:
        from prefect import serve

        apart = [replace(config, schedule="") if together else config for config in configs]
        deployments = [made for config in apart for made in _deployments(config)]
        deployments += [_all_at_once(configs, together)] if together else []
        _log.info("Serving %d schedules on %s; stop with Ctrl-C.", len(deployments), api)
        # Pausing on shutdown is Prefect's default and would silently end the schedule.
        serve(*deployments, pause_on_shutdown=False)


def _all_at_once(configs: Sequence[RunConfig], cron: str) -> Any:
    from rarescan.flows.augment import together

    return together.to_deployment(
        name=", ".join(config.name for config in configs),
        cron=cron,
        parameters={"configs": [plain_config(config) for config in configs]},
        tags=["rarescan"],
        concurrency_limit=1,
    )


def _require_work(config: RunConfig, *, whole_way: bool) -> None:
    if not whole_way and not config.schedule and not config.monitor.schedule:
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
