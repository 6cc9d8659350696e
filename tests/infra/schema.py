"""KubeRay's published definition of a RayJob -> the schema that the tests hold infra/kuberay/ to.

To renew it, with a checkout of KubeRay at a release:

    git -C kuberay show v1.7.0:helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml |
      python -m tests.infra.schema v1.7.0

`rayjob.json.gz` is a part of KubeRay, Apache-2.0, see NOTICE beside it: the openAPIV3Schema of
version v1 without descriptions and defaults, as JSON.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

PLACE = Path(__file__).with_name("rayjob.json.gz")
# What checks nothing, or what Kubernetes alone understands.
LEFT_OUT = {
    "default",
    "description",
    "format",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
}


def published(definition: str, release: str) -> dict[str, Any]:
    """The schema of RayJob v1 in a custom resource definition, as it is kept here."""
    versions = yaml.load(definition, yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    schema["properties"].pop("status", None)  # KubeRay's to write
    return {"$comment": f"KubeRay {release}, Apache-2.0", **_bare(schema)}


def strict(schema: Any) -> Any:
    """The same, refusing fields that it does not name: Kubernetes drops those without a word."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        open_ = schema.get("x-kubernetes-preserve-unknown-fields")
        made.setdefault("additionalProperties", bool(open_))
    return made


def kept() -> dict[str, Any]:
    """The schema in this folder."""
    schema: dict[str, Any] = json.loads(gzip.decompress(PLACE.read_bytes()))
    return schema


def _bare(schema: Any, *, fields: bool = False) -> Any:
    """Without what is left out; the keys of `properties` are fields, whatever they are called."""
    if isinstance(schema, list):
        return [_bare(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _bare(value, fields=key == "properties" and not fields)
        for key, value in schema.items()
        if fields or key not in LEFT_OUT
    }


if __name__ == "__main__":
    text = json.dumps(
        published(sys.stdin.read(), sys.argv[1]), sort_keys=True, separators=(",", ":")
    )
    PLACE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    sys.stdout.write(f"{PLACE.name}: {len(text)} bytes, packed {PLACE.stat().st_size}\n")
