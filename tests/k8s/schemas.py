"""Strict schemas for what the manifests hold: Kubernetes', KubeRay's, and what we use of others."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.32"
KUEUE, PROMETHEUS = "kueue.x-k8s.io/v1beta2", "monitoring.coreos.com/v1"
Document = dict[str, Any]

_NAMED = {"type": "object"}
_TEXT = {"type": "string"}


def _object(required: list[str], **properties: Any) -> Document:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


def _list_of(schema: Document) -> Document:
    return {"type": "array", "minItems": 1, "items": schema}


_SELECTOR = _object([], matchLabels={"type": "object"}, matchExpressions={"type": "array"})
_RELABELING = _object(
    [],
    sourceLabels=_list_of(_TEXT),
    targetLabel=_TEXT,
    regex=_TEXT,
    action=_TEXT,
    replacement=_TEXT,
)
_ENDPOINT = _object(
    ["port"],
    port=_TEXT,
    interval=_TEXT,
    path=_TEXT,
    honorLabels={"type": "boolean"},
    relabelings=_list_of(_RELABELING),
)
_QUANTITY = {"type": ["string", "integer"]}
OTHERS: dict[str, Document] = {
    "PodMonitor": _object(
        ["selector", "podMetricsEndpoints"],
        selector=_SELECTOR,
        podMetricsEndpoints=_list_of(_ENDPOINT),
    ),
    "ServiceMonitor": _object(
        ["selector", "endpoints"],
        selector=_SELECTOR,
        namespaceSelector=_object([], any={"type": "boolean"}, matchNames=_list_of(_TEXT)),
        endpoints=_list_of(_ENDPOINT),
    ),
    "PrometheusRule": _object(
        ["groups"],
        groups=_list_of(
            _object(
                ["name", "rules"],
                name=_TEXT,
                rules=_list_of(
                    _object(
                        ["alert", "expr"],
                        alert=_TEXT,
                        expr=_TEXT,
                        labels=_NAMED,
                        annotations=_NAMED,
                        **{"for": _TEXT},
                    )
                ),
            )
        ),
    ),
    "ResourceFlavor": _object([], nodeLabels=_NAMED, tolerations={"type": "array"}),
    "LocalQueue": _object(["clusterQueue"], clusterQueue=_TEXT),
    "ClusterQueue": _object(
        ["resourceGroups"],
        namespaceSelector=_SELECTOR,
        queueingStrategy={"enum": ["BestEffortFIFO", "StrictFIFO"]},
        preemption=_object([], withinClusterQueue=_TEXT, reclaimWithinCohort=_TEXT),
        resourceGroups=_list_of(
            _object(
                ["coveredResources", "flavors"],
                coveredResources=_list_of(_TEXT),
                flavors=_list_of(
                    _object(
                        ["name", "resources"],
                        name=_TEXT,
                        resources=_list_of(
                            _object(["name", "nominalQuota"], name=_TEXT, nominalQuota=_QUANTITY)
                        ),
                    )
                ),
            )
        ),
    ),
}
"""What we use of the Prometheus operator's (v1) and Kueue's (v1beta2) kinds."""


class Schemas:
    """Checks documents as an API server would, and refuses what it would silently drop.

    Args:
        crds: Folder of KubeRay's custom resource definitions.
    """

    def __init__(self, crds: Path) -> None:
        self._right: set[str] = set()
        self._ours = {kind: _validator(_with_head(kind, spec)) for kind, spec in OTHERS.items()}
        for path in sorted(crds.glob("ray.io_*.yaml")):
            found = yaml.load(path.read_text(), yaml.CSafeLoader)
            (served,) = [v for v in found["spec"]["versions"] if v["name"] == "v1"]
            schema = copy.deepcopy(served["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = _NAMED
            self._ours[found["spec"]["names"]["kind"]] = _validator(strict(schema))
        assert len(self._ours) == len(OTHERS) + 4, f"{crds}: KubeRay has four kinds"

    def check(self, document: Document) -> None:
        """Raise where the document is wrong."""
        kind = document["kind"]
        if kind in self._ours:
            self._ours[kind].validate(document)
        else:
            self._check_core(document)
        if kind.startswith("Ray") and kind != "RayCluster":
            check_combinations(document)
        for pod in pods(document):
            self._check_core({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **pod})

    def _check_core(self, document: Document) -> None:
        """Validate one of Kubernetes' own kinds; most pods are alike, and one look is slow."""
        text = json.dumps(document, sort_keys=True)
        if text not in self._right:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
            self._right.add(text)


def _validator(schema: Document) -> Any:
    return jsonschema.validators.validator_for(schema)(schema)


def _with_head(kind: str, spec: Document) -> Document:
    return _object(
        ["apiVersion", "kind", "metadata"],
        apiVersion={"const": KUEUE if kind.endswith(("Queue", "Flavor")) else PROMETHEUS},
        kind=_TEXT,
        metadata=_NAMED,
        spec=spec,
    )


def strict(node: Any) -> Any:
    """Turn a structural schema into one that knows every key, defaults filled in."""
    if isinstance(node, list):
        return [strict(part) for part in node]
    if not isinstance(node, dict):
        return node
    node = {key: strict(part) for key, part in node.items()}
    if node.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    properties = node.get("properties")
    if isinstance(properties, dict) and node.get("type") == "object":
        has_default = [name for name, part in properties.items() if "default" in part]
        if "required" in node:
            node["required"] = [name for name in node["required"] if name not in has_default]
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
    return node


def pods(node: Any) -> list[Document]:
    """Return the pod templates in a document, at any depth."""
    if isinstance(node, list):
        return [pod for part in node for pod in pods(part)]
    if not isinstance(node, dict):
        return []
    is_pod = isinstance(node.get("spec"), dict) and "containers" in node["spec"]
    here = [{"spec": node["spec"]}] if is_pod else []
    return here + [pod for part in node.values() for pod in pods(part)]


def check_combinations(document: Document) -> None:
    """Raise where KubeRay's operator would refuse what its schema allows."""
    kind, name = document["kind"], document["metadata"]["name"]
    assert len(name) <= 47, f"{name}: KubeRay allows 47 characters"
    spec = document["spec"].get("jobTemplate", document["spec"])
    if kind == "RayService":
        return
    is_short = spec.get("shutdownAfterJobFinishes", False)
    faults = {
        "ttlSecondsAfterFinished without shutdownAfterJobFinishes": spec.get(
            "ttlSecondsAfterFinished", 0
        )
        > 0
        and not is_short,
        "suspend without shutdownAfterJobFinishes": spec.get("suspend", False) and not is_short,
        "deletionRules with shutdownAfterJobFinishes": bool(spec.get("deletionStrategy"))
        and is_short,
        "backoffLimit with clusterSelector": bool(spec.get("clusterSelector"))
        and spec.get("backoffLimit", 0) > 0,
        "SidecarMode with a submitter": spec.get("submissionMode") == "SidecarMode"
        and "submitterPodTemplate" in spec,
    }
    found = [fault for fault, is_there in faults.items() if is_there]
    assert not found, f"{name}: {found}"
