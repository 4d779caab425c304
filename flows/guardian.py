"""A Prefect server that lives exactly as long as the command that needs it.

Prefect's own temporary server outlives a killed command, and its run stays `Running` for ever.
This process serves the same application on a free loopback port, writes the port to stdout, and
watches stdin: when it closes, the command has ended, however it did. Then the runs that the
command left are marked `Crashed` and the server stops. Started by `flows.server`.
"""

import json
import signal
import socket
import sys
import threading
import urllib.request
from typing import Any


def main() -> None:
    """Serve until stdin closes."""
    import uvicorn
    from prefect.server.api.server import create_app

    # Ctrl-C and termination reach the whole group; this process must outlive them to clean up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    config = uvicorn.Config(create_app(), log_level="critical", lifespan="on")
    server = uvicorn.Server(config)
    threading.Thread(target=_watch, args=(server, port, sys.argv[1]), daemon=True).start()
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    thread.join()


def _watch(server: Any, port: int, owner: str) -> None:
    while not server.started:
        threading.Event().wait(0.05)
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    try:
        mark_crashed(f"http://127.0.0.1:{port}/api", owner)
    finally:
        server.should_exit = True


def mark_crashed(api: str, owner: str) -> int:
    """Set every unfinished run with the tag `owner` to `Crashed`; return how many there were."""
    wanted = {
        "flow_runs": {
            "tags": {"all_": [owner]},
            "state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}},
        }
    }
    state = {
        "state": {"type": "CRASHED", "message": "The command ended before the run did."},
        "force": True,
    }
    runs = _post(f"{api}/flow_runs/filter", wanted)
    for run in runs:
        _post(f"{api}/flow_runs/{run['id']}/set_state", state)
    return len(runs)


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
