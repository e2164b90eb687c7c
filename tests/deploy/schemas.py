"""Words to write the schema of a custom resource with, strict everywhere, and the check itself.

A schema is JSON Schema in which Kubernetes' own parts are named, not written out, and in which an object or a list can
have `refusals`: what is refused of it as a whole, which a CRD says in CEL and an operator in its code.
"""

import functools
import importlib.resources
import json
from collections.abc import Callable, Iterator

from jsonschema import Draft202012Validator, ValidationError, validators

KUBERNETES = "1.37"
Refusals = Callable[..., dict[str, object]]  # of a value: what is refused, and, if it is there, something true

TEXT, YES_OR_NO, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "number"}
INT32 = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
NATURAL, POSITIVE = INT32 | {"minimum": 0}, INT32 | {"minimum": 1}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def record(required: str = "", refusals: Refusals | None = None, /, **fields: dict) -> dict:
    """An object with these fields and no others."""
    known = {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}
    return known | ({"refusals": refusals} if refusals else {})


def each(names: str, kind: dict) -> dict[str, dict]:
    """Several fields of one kind."""
    return dict.fromkeys(names.split(), kind)


def rows(row: dict, key: str = "") -> dict:
    """A list, of which no two rows have the same `key`."""

    def twice(there: list[dict]) -> dict[str, object]:
        return {f"a {key} twice": len({entry[key] for entry in there}) < len(there)}

    return {"type": "array", "items": row} | ({"refusals": twice} if key else {})


def one_of(*values: str) -> dict:
    return {"enum": list(values)}


def kubernetes(name: str, /, **narrower: dict) -> dict:
    """What Kubernetes calls so; some fields can be narrower than there."""
    return {"$ref": f"#/$defs/io.k8s.{name}", "type": "object", "properties": narrower}


def refused(_: object, refusals: Refusals, value: object, __: object) -> Iterator[ValidationError]:
    yield from (ValidationError(f"refused: {what}") for what, is_there in refusals(value).items() if is_there)


Refusing = validators.extend(Draft202012Validator, {"refusals": refused})


@functools.cache
def definitions() -> dict:
    """Kubernetes' own, as kubernetes_validate has them."""
    schemas = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"
    file = schemas / f"v{KUBERNETES}.0-local-strict" / "_definitions.json"
    return json.loads(file.read_text(encoding="utf-8"))["$defs"]


def validate(manifest: dict, metadata: dict, spec: dict) -> None:
    known = kubernetes("apimachinery.pkg.apis.meta.v1.ObjectMeta", **metadata) | {"required": ["name"]}
    schema = record("apiVersion kind metadata spec", apiVersion=TEXT, kind=TEXT, metadata=known, spec=spec)
    for validator in (Draft202012Validator, Refusing):  # so that refusals can rely on the types of what they look at
        validator(schema | {"$defs": definitions()}).validate(manifest)
