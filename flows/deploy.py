"""Serve the whole way on schedules, from one long-lived process.

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
    """Serve `augment` once for each configuration, until the process is stopped.

    Raises
    ------
    SettingError
        A configuration has no schedule.
    """
    for config in configs:
        if not config.schedule:
            raise SettingError(
                f"The run '{config.name}' has no schedule.",
                remedy='Set `schedule` to a cron line, for example schedule: "0 2 * * 6".',
            )
    with prefect_server(Path(configs[0].runs) / ".prefect", schedules=True) as api:
        from prefect import serve

        from rarescan.flows.augment import augment

        deployments: list[Any] = [
            augment.to_deployment(
                name=config.name,
                cron=config.schedule,
                parameters={"config": plain_config(config)},
                tags=["rarescan"],
                concurrency_limit=1,
            )
            for config in configs
        ]
        _log.info("Serving %d schedules on %s; stop with Ctrl-C.", len(configs), api)
        # Pausing on shutdown is Prefect's default and would silently end the schedule.
        serve(*deployments, pause_on_shutdown=False)
