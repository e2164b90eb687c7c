"""The running gateway as the promoter sees it: which version answers there, and its metrics about a candidate."""

import http.client
import json
import time

from export.errors import ReleaseRefused
from export.settings import Settings
from export.triton import listens

FOLLOW_SECONDS = 10.0  # from a changed serving.json to the first answer of the version it names
ASK_SECONDS = 6.0  # its canary waits up to 5 s for Triton
PAUSE_SECONDS = 0.02
ELSEWHERE = ", so another service may listen there: set NUNCHI_GATEWAY_PORT"


class Gateway:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.address = f"{settings.gateway_host}:{settings.gateway_port}"

    def listens(self) -> bool:
        return listens(self._settings.gateway_host, self._settings.gateway_port)

    def wait_for(self, version: int, seconds: float = FOLLOW_SECONDS) -> float:
        """Seconds until a canary of this version went right through the gateway.

        Raises:
            ReleaseRefused: it has not within ``seconds``, or is another service.
        """
        began = time.monotonic()
        while True:
            found, words = self._ready()
            if found == str(version):
                return time.monotonic() - began
            if time.monotonic() - began > seconds:
                raise ReleaseRefused(
                    f"the gateway at {self.address} does not answer with version {version} after {seconds:.0f} s "
                    f"({words}); its log, {self._settings.gateway_log}, says why"
                )
            time.sleep(PAUSE_SECONDS)

    def about_candidate(self) -> list[str]:
        """The lines of /metrics that speak of a candidate; none when there is no gateway."""
        status, page = self._get("/metrics")
        wanted = ("nunchi_gateway_candidate_", "nunchi_gateway_shadow_")
        lines = page.splitlines() if status == 200 else []
        return [line for line in lines if line.startswith(wanted) and "_created" not in line]

    def _ready(self) -> tuple[str | None, str]:
        """The version /readyz names; None with a few words when it names none.

        Raises:
            ReleaseRefused: whoever listens there is not the gateway.
        """
        status, page = self._get("/readyz")
        if status != 200:
            return None, page if status is None else f"/readyz says {status}{ELSEWHERE if status == 404 else ''}"
        try:
            version = json.loads(page)["model_version"]
        except (ValueError, KeyError, TypeError):
            raise ReleaseRefused(
                f"another service than the gateway answers at {self.address}; set NUNCHI_GATEWAY_PORT to the port of "
                "the gateway"
            ) from None
        return version, f"it answers with version {version}"

    def _get(self, path: str) -> tuple[int | None, str]:
        """Status and body; None with the reason when it could not be asked."""
        connection = http.client.HTTPConnection(
            self._settings.gateway_host, self._settings.gateway_port, timeout=ASK_SECONDS
        )
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as exc:
            return None, f"it cannot be asked: {exc}"
        finally:
            connection.close()
