"""The custom resources that deploy/k8s uses: which fields there are, and of what type.

No package registry carries KubeRay's definitions, so this is a table of our own, of the fields that the manifests use
and no others, read from KubeRay's Go types: ray-operator/apis/ray/v1/ in ray-project/kuberay, rayservice_types.go at
0074129, raycluster_types.go at 026f143, rayjob_types.go at 0057210.  The two kinds of the Prometheus operator were also
checked by hand with the validators of the npm package @kubernetes-models/prometheus-operator 6.0.0 (30 November 2026).
A field that is not here is refused, also one that does exist upstream: then it has to be looked up there and written
down here.  Pods are Kubernetes' own, and checked as such.
"""

TEXT, NUMBER, YES_OR_NO = "text", "number", "yes or no"
TEXTS = {"*": TEXT}  # a map of text to text
POD_TEMPLATE, RESOURCES, SECURITY = "PodTemplate", "resources", "securityContext"

HEAD_GROUP = {"rayStartParams!": TEXTS, "template!": POD_TEMPLATE}
WORKER_GROUP = {
    "groupName!": TEXT,
    "replicas": NUMBER,
    "minReplicas!": NUMBER,
    "maxReplicas!": NUMBER,
    "rayStartParams!": TEXTS,
    "template!": POD_TEMPLATE,
}
RAY_CLUSTER = {
    "rayVersion": TEXT,
    "enableInTreeAutoscaling": YES_OR_NO,
    "autoscalerOptions": {
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "idleTimeoutSeconds": NUMBER,
        "resources": RESOURCES,
        "securityContext": SECURITY,
    },
    "headGroupSpec!": HEAD_GROUP,
    "workerGroupSpecs": [WORKER_GROUP],
}
SCRAPED = {
    "port": TEXT,
    "path": TEXT,
    "interval": TEXT,
    "scrapeTimeout": TEXT,
    "relabelings": [{"targetLabel": TEXT, "replacement": TEXT}],
}
SPECS = {
    ("ray.io/v1", "RayService"): {"serveConfigV2": TEXT, "rayClusterConfig": RAY_CLUSTER},
    ("ray.io/v1", "RayJob"): {
        "suspend": YES_OR_NO,
        "entrypoint": TEXT,
        "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode"},
        "shutdownAfterJobFinishes": YES_OR_NO,
        "ttlSecondsAfterFinished": NUMBER,
        "activeDeadlineSeconds": NUMBER,
        "backoffLimit": NUMBER,
        "rayClusterSpec": RAY_CLUSTER,
        "submitterPodTemplate": POD_TEMPLATE,
    },
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {
        "selector!": {"matchLabels": TEXTS},
        "endpoints!": [SCRAPED],
    },
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        "selector!": {"matchLabels": TEXTS},
        "podMetricsEndpoints": [SCRAPED],
    },
}


def faults(value: object, kind: object, where: str) -> list[str]:
    """What of `value` is not as `kind` says; parts of a pod are not looked at."""
    if kind in (POD_TEMPLATE, RESOURCES, SECURITY):
        return [] if isinstance(value, dict) else [f"{where} is no object"]
    if isinstance(kind, set):
        return [] if value in kind else [f"{where} is {value!r}, none of {sorted(kind)}"]
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [fault for row, each in enumerate(value) for fault in faults(each, kind[0], f"{where}[{row}]")]
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        if kind == TEXTS:
            return [fault for name, each in value.items() for fault in faults(each, TEXT, f"{where}.{name}")]
        fields = {name.rstrip("!"): each for name, each in kind.items()}
        missing = [f"{where}.{name[:-1]} is missing" for name in kind if name.endswith("!") and name[:-1] not in value]
        unknown = [f"{where}.{name} is unknown" for name in value if name not in fields]
        inner = [
            fault
            for name, each in value.items()
            if name in fields
            for fault in faults(each, fields[name], f"{where}.{name}")
        ]
        return missing + unknown + inner
    right = {TEXT: isinstance(value, str), YES_OR_NO: isinstance(value, bool), NUMBER: type(value) is int}[kind]
    return [] if right else [f"{where} is {value!r}, no {kind}"]
