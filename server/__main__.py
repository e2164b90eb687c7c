"""`python -m server` runs Triton in the foreground, from the repository's model, until Ctrl-C or SIGTERM.

It needs no Docker: the tritonserver binary comes with the nvidia-pytriton wheel, ONNX Runtime sits behind it as a
Python-based backend.  The environment variables are in `server/settings.py`.  Exit status 0 after a stop, 2 when the
user must change something first, which is then the one `error:` line.
"""

import asyncio
import logging
import signal
import sys
from contextlib import suppress

from server.claim import claim
from server.errors import CannotStart
from server.preflight import check_machine, check_ports
from server.settings import read_settings
from server.supervisor import Supervisor
from server.triton import admin_key, command, lay_out


def main() -> int:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s server %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        with suppress(asyncio.CancelledError):
            asyncio.run(serve())
    except CannotStart as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


async def serve() -> None:
    """Check, claim, lay out, supervise.  A signal cancels this task; a second one cuts the graceful stop short."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    settings = read_settings()
    bundle, libpython = check_machine(settings)
    with claim(settings.var) as region_prefix:
        check_ports(settings.ports())  # after the claim, which clears what a killed server left on them
        layout = lay_out(settings.var / "triton", libpython)
        line = command(settings, layout, admin_key(settings), region_prefix)
        await Supervisor(settings, bundle, layout, line, region_prefix).run()


if __name__ == "__main__":
    sys.exit(main())
