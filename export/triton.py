"""A running Triton as the promoter sees it: which versions are loaded, load exactly these, do they answer right.

A load names the versions in a configuration of its own, beside the one on disk. Triton 24.10 then loads what is new,
releases what is no longer named, and leaves the other versions and their processes untouched, all in one step; when a
new one fails, nothing changes. It forgets that configuration when it restarts, and starts with what config.pbtxt names.
"""

import itertools
import json
import socket
import time
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from export.errors import ReleaseRefused, TritonAway, TritonLost
from export.settings import Settings

if TYPE_CHECKING:  # pydantic builds it in a tenth of a second, which a rollback does without
    from export.manifest import GoldenRow, Manifest

MODEL = "sentiment"
ASK_SECONDS = 2.0
LOAD_SECONDS = 120.0
ANSWER_SECONDS = 60.0  # of one batch of golden rows, on a machine that may be busy
WAIT_SECONDS = 30.0  # for a Triton that is starting, or being restarted
SHORT_ROWS = 8  # of the golden rows, in a full batch again and again
TRIES = 3  # a batch that is not full is merged with whatever is under way, which moves int8 answers a little
AWAY = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
ADMIN_HEADER = "triton-grpc-protocol-admin-key"


class Triton:
    """Its gRPC endpoint; `with` closes the channel.

    Raises, in every method that asks: TritonAway when it does not answer or refuses the admin key.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.address = f"{settings.triton_grpc_host}:{settings.triton_grpc_port}"
        patience = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        self._client = InferenceServerClient(self.address, channel_args=patience)

    def __enter__(self) -> "Triton":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def listens(self) -> bool:
        return listens(self._settings.triton_grpc_host, self._settings.triton_grpc_port)

    def wait(self, seconds: float = WAIT_SECONDS) -> None:
        """Until it says that it lives."""
        until = time.monotonic() + seconds
        while not self._lives():
            if time.monotonic() > until:
                raise TritonAway(
                    f"a gateway serves, but Triton at {self.address} has not answered for {seconds:.0f} s; start it "
                    "with make triton, or name its port with NUNCHI_TRITON_GRPC_PORT"
                )
            time.sleep(0.2)

    def is_ready(self, version: int) -> bool:
        """Whether the version is loaded; also False when Triton does not answer."""
        try:
            return self._has_loaded(version)
        except InferenceServerException:
            return False

    def ready_versions(self) -> set[int]:
        try:
            index = self._client.get_model_repository_index(headers=self._key(), client_timeout=ASK_SECONDS)
        except InferenceServerException as exc:
            raise self._away(exc) from exc
        return {int(each.version) for each in index.models if each.name == MODEL and each.state == "READY"}

    def load(self, config: ModelConfig) -> None:
        """Have exactly the versions that ``config`` names loaded, whatever config.pbtxt says.

        Raises:
            ReleaseRefused: one of them cannot be loaded; those that were loaded still are.
            TritonLost: it went away meanwhile.
        """
        wanted = set(config.version_policy.specific.versions)
        override = json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True))
        try:
            self._client.load_model(MODEL, headers=self._key(), config=override, client_timeout=LOAD_SECONDS)
            missing = sorted(version for version in wanted if not self._has_loaded(version))
        except InferenceServerException as exc:
            if _is_away(exc):
                raise self._away(exc, TritonLost) from exc
            raise ReleaseRefused(f"Triton at {self.address} cannot load it ({_reason(exc)})") from exc
        if missing:  # a folder that Triton does not see is passed over in silence
            raise ReleaseRefused(
                f"Triton at {self.address} has not loaded version {missing[0]}; it must serve this very repository"
            )

    def check_golden_rows(self, manifest: "Manifest", max_batch_size: int) -> None:
        """A full batch of the longest golden row and short ones, then each alone, padded as the gateway does, pinned to
        the version. Callers wait behind the batch, so it is as light as a full one can be.

        Raises:
            ReleaseRefused: an answer is missing, or off by more than the manifest tolerates.
            TritonLost: it went away meanwhile.
        """
        *shorter, longest = sorted(manifest.golden, key=lambda row: len(row.input_ids))
        short = itertools.cycle(shorter[:SHORT_ROWS] or [longest])
        batch = [longest, *itertools.islice(short, max_batch_size - 1)]
        self._check(manifest, batch, f"in a batch of {max_batch_size}", tries=1)
        for number, row in enumerate(manifest.golden):
            self._check(manifest, [row], f"alone (row {number})", tries=TRIES)

    def answers_as(self, manifest: "Manifest") -> bool:
        """Whether the version with the manifest's number is the one it describes, by its golden rows.

        One after the other: it answers callers meanwhile, who would wait behind a whole batch of them.
        """
        try:
            for row in manifest.golden:
                self._check(manifest, [row], "alone", tries=TRIES)
        except ReleaseRefused:
            return False
        return True

    def _check(self, manifest: "Manifest", rows: list["GoldenRow"], how: str, *, tries: int) -> None:
        expected = np.array([row.probabilities for row in rows])
        for left in reversed(range(tries)):
            try:
                result = self._client.infer(
                    MODEL,
                    _inputs(rows, manifest),
                    model_version=str(manifest.version),
                    client_timeout=ANSWER_SECONDS,
                )
            except InferenceServerException as exc:
                if _is_away(exc):
                    raise self._away(exc, TritonLost) from exc
                raise ReleaseRefused(f"Triton fails on its golden rows {how} ({_reason(exc)})") from exc
            logits = result.as_numpy(manifest.output).astype(float)
            if logits.shape != expected.shape:
                raise ReleaseRefused(
                    f"Triton answers its golden rows {how} with logits of shape {list(logits.shape)}, "
                    f"{list(expected.shape)} is right"
                )
            exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
            shift = float(np.abs(exponents / exponents.sum(axis=1, keepdims=True) - expected).max())
            if shift <= manifest.golden_probability_tolerance:
                return
            if not left:
                raise ReleaseRefused(
                    f"through Triton it is off its golden rows {how} by {shift:.4f}, "
                    f"{manifest.golden_probability_tolerance} is allowed"
                )

    def _has_loaded(self, version: int) -> bool:
        return self._client.is_model_ready(MODEL, str(version), client_timeout=ASK_SECONDS)

    def _lives(self) -> bool:
        try:
            return self._client.is_server_live(client_timeout=ASK_SECONDS)
        except InferenceServerException:
            return False

    def _key(self) -> dict[str, str]:
        """The header with the admin key, read anew each time: a server that was restarted has another."""
        if self._settings.triton_admin_key is not None:
            return {ADMIN_HEADER: self._settings.triton_admin_key.get_secret_value().strip()}
        file = self._settings.admin_key_file
        try:
            return {ADMIN_HEADER: file.read_text(encoding="utf-8").strip()}
        except OSError as exc:
            raise TritonAway(
                f"Triton at {self.address} wants its admin key, and {file} cannot be read ({exc.strerror}); set "
                "NUNCHI_TRITON_ADMIN_KEY, or NUNCHI_VAR to the state folder of its server"
            ) from exc

    def _away(self, exc: InferenceServerException, kind: type[TritonAway] = TritonAway) -> TritonAway:
        if "protocol is restricted" in exc.message():
            return TritonAway(
                f"Triton at {self.address} refuses the admin key; set NUNCHI_TRITON_ADMIN_KEY to its key, or "
                "NUNCHI_VAR to the state folder of its server"
            )
        return kind(f"Triton at {self.address} does not answer ({_reason(exc)}); try again when it does")


def listens(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _is_away(exc: InferenceServerException) -> bool:
    """Whether it is Triton that does not answer; of a version that is not loaded it says UNAVAILABLE too."""
    return exc.status() in AWAY and "not at ready state" not in exc.message()


def _inputs(rows: list["GoldenRow"], manifest: "Manifest") -> list[InferInput]:
    """INT64 [rows, max_length] each."""
    ids = np.full((len(rows), manifest.max_length), manifest.pad_token_id, np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row.input_ids)] = row.input_ids
        mask[place, : len(row.input_ids)] = 1
    inputs = []
    for name, tensor in zip(manifest.inputs, (ids, mask), strict=True):
        inputs.append(InferInput(name, tensor.shape, "INT64"))
        inputs[-1].set_data_from_numpy(tensor)
    return inputs


def _reason(exc: InferenceServerException) -> str:
    """Its first line, without the stack trace of the backend."""
    return exc.message().split("\n")[0].rstrip(";. ")
