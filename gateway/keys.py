"""The API keys a gateway takes: NUNCHI_API_KEY, and those of NUNCHI_API_KEYS_FILE, which change without a restart.

AdminKey is another matter: it opens /v1/operations only.

The file has one key per line, `name: key` or just `key`; empty lines and lines that begin with # are skipped.  Only its
owner and group may read it.  A name is for the log (the key itself is written nowhere); a key may have printable ASCII
characters but no spaces.  To rotate: add the new key, let the callers change over, take the old one out; write the new
file beside the old one and rename it, so that nobody reads half of it.
"""

import hashlib
import hmac
import logging
import os
import re
import stat
import time
from pathlib import Path

from pydantic import SecretStr

from gateway.errors import NotAllowed, SettingRefused

LOOK_SECONDS = 1.0
SHORTEST_KEY = 8  # characters, of a key in the file
NAMED = re.compile(r"(?:([A-Za-z0-9][A-Za-z0-9 ._@/-]{0,63}):\s+)?([!-~]+)")
BEARER = "Bearer "
NAME_OF_THE_VARIABLE = "NUNCHI_API_KEY"

log = logging.getLogger(__name__)


class Keys:
    """Tells whose key a request brings.  Compares digests with all of them, so the time says nothing about any."""

    def __init__(self, api_key: SecretStr | None, path: Path | None) -> None:
        """SettingRefused when the file cannot be used."""
        self._path = path
        self._fixed = [(_digest(api_key.get_secret_value()), NAME_OF_THE_VARIABLE)] if api_key else []
        self._of_file: list[tuple[bytes, str]] = []
        self._seen: tuple[int, ...] | None = None
        self._looked_at = time.monotonic()
        if path:
            self._seen = _signature(path)
            self._of_file = read_keys(path)

    @property
    def asked_for(self) -> bool:
        return self._path is not None or bool(self._fixed)

    def owner(self, authorization: str) -> str | None:
        """The name of the key in an `Authorization` header, or None."""
        self._look_at_file()
        offered = _digest(authorization.removeprefix(BEARER))
        found = None
        for digest, name in [*self._fixed, *self._of_file]:
            if hmac.compare_digest(digest, offered):
                found = name
        return found if authorization.startswith(BEARER) else None

    def _look_at_file(self) -> None:
        """Read the file again when it is another one; a broken one changes nothing and is complained about once."""
        now = time.monotonic()
        if self._path is None or now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        signature = _signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._of_file = read_keys(self._path)
        except SettingRefused as refusal:
            log.error("keeping the %d keys there were: %s", len(self._of_file), refusal)
        else:
            log.info("%d keys are taken now: %s", len(self._of_file), ", ".join(name for _, name in self._of_file))


class AdminKey:
    """The key of whoever may change what answers."""

    def __init__(self, key: SecretStr | None) -> None:
        self._digest = _digest(key.get_secret_value()) if key else None

    def check(self, offered: str | None) -> None:
        """NotAllowed unless this is the key."""
        if self._digest is None:
            raise NotAllowed(
                "operations are switched off here; set NUNCHI_ADMIN_KEY (16 characters or more) where the gateway is "
                "started, or run the commands there"
            )
        if not hmac.compare_digest(self._digest, _digest(offered or "")):
            raise NotAllowed("operations ask for the admin key of this gateway; send it as `x-admin-key: <key>`")


def read_keys(path: Path) -> list[tuple[bytes, str]]:
    """Digest and name of each key; SettingRefused, in a sentence that shows no key, for a file that will not do."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise SettingRefused(f"NUNCHI_API_KEYS_FILE {path}: {reason}; mend the file or unset the variable") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise SettingRefused(
            f"NUNCHI_API_KEYS_FILE {path} has mode {stat.S_IMODE(mode):04o}, so everybody on this machine may use it; "
            f"chmod 600 {path}"
        )
    keys: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = NAMED.fullmatch(line)
        if match is None or len(match[2]) < SHORTEST_KEY:
            raise SettingRefused(
                f"NUNCHI_API_KEYS_FILE {path}, line {number}: it is not `name: key` with a key of {SHORTEST_KEY} or "
                "more printable characters without spaces; mend the line or put # before it"
            )
        keys[_digest(match[2])] = match[1] or f"line {number}"
    if not keys:
        raise SettingRefused(f"NUNCHI_API_KEYS_FILE {path} holds no key; write one per line, as `name: key`")
    return list(keys.items())


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
