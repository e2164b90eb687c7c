"""The custom resources that deploy/k8s uses: every field there is, and of what type.

No package registry carries KubeRay's definitions, so RAY_SERVICE and RAY_JOB are tables of our own: all of `spec` that
is KubeRay's, written down on 30 November 2026 from ray-project/kuberay at commit 02a80a6, a nightly version and not a
release.  They are of helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml and, for RayJob, of `jobTemplate` in
ray-operator/config/crd/bases/ray.io_raycronjobs.yaml: the same Go type (ray.io_rayjobs.yaml was not to be had at that
commit).  Defaults are not filled in, so what is required has to be there.  What is refused beyond that: refusals.py.
Pods, services, variables and the rules of network policies are Kubernetes' own, and checked as such.

ServiceMonitor and PodMonitor have the fields that the manifests use and no others, checked by hand with the validators
of the npm package @kubernetes-models/prometheus-operator 6.0.0 on that day.
"""

from tests.deploy import refusals
from tests.deploy.schemas import (
    INT32,
    NATURAL,
    NUMBER,
    POSITIVE,
    TEXT,
    TEXTS,
    YES_OR_NO,
    each,
    kubernetes,
    one_of,
    record,
    rows,
)

NUMERAL = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
QUANTITY = {"type": ["integer", "string"], "pattern": rf"^[+-]?{NUMERAL}([KMGTPE]i|[numkMGTPE]|[eE][+-]?{NUMERAL})?$"}
WORD, DNS = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
LABELS = {  # the operator's; to the CRD any texts
    "type": "object",
    "propertyNames": {"pattern": rf"^({DNS}(\.{DNS})*/)?{WORD}$"},
    "additionalProperties": TEXT | {"pattern": rf"^({WORD})?$"},
}
INNER_METADATA = record(**each("annotations labels", TEXTS), **each("name namespace", TEXT), finalizers=rows(TEXT))
SERVICE = kubernetes("api.core.v1.Service", metadata=INNER_METADATA)
CONTAINERS = {"properties": {"containers": {"minItems": 1}}}  # the operator's; to the CRD there need be none
POD = kubernetes("api.core.v1.PodTemplateSpec", metadata=INNER_METADATA, spec=CONTAINERS) | {"required": ["spec"]}
RESOURCES, VARIABLES = kubernetes("api.core.v1.ResourceRequirements"), rows(kubernetes("api.core.v1.EnvVar"))
MANAGED_BY = one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")

GROUP = {**each("rayStartParams resources", TEXTS), "labels": LABELS, "template": POD}
HEAD_GROUP = record(
    "template",
    refusals.of_group,
    **GROUP,
    enableIngress=YES_OR_NO,
    headService=SERVICE,
    ingressOptions=record(
        **each("host path", TEXT),
        pathType=one_of("Exact", "Prefix", "ImplementationSpecific"),
        tls=rows(kubernetes("api.networking.v1.IngressTLS")),
    ),
    serviceType=TEXT,
)
WORKER_GROUP = record(
    "groupName maxReplicas minReplicas template",
    refusals.of_group,
    **GROUP,
    **each("idleTimeoutSeconds maxReplicas minReplicas", NATURAL),  # the operator's; to the CRD any numbers
    **each("numOfHosts priority replicas", INT32),
    groupName=TEXT,
    scaleStrategy=record(scaleGate=rows(record("type", type=TEXT), "type"), workersToDelete=rows(TEXT)),
    suspend=YES_OR_NO,
    topology=record(
        labelMappings=rows(record("nodeLabel", nodeLabel=TEXT, mapTo=TEXT | {"maxLength": 317}), "nodeLabel")
    ),
)

CREDENTIAL = record(value=TEXT, valueFrom=kubernetes("api.core.v1.EnvVarSource"))
FAULT_TOLERANCE = record(
    "",
    refusals.of_fault_tolerance,
    **each("externalStorageNamespace redisAddress", TEXT),
    **each("redisPassword redisUsername", CREDENTIAL),
    activePassiveHeadOptions=record(
        "",
        refusals.of_second_head,
        **each("leaseDurationSeconds renewDeadlineSeconds retryPeriodSeconds", POSITIVE),
        enabled=YES_OR_NO,
    ),
    backend=one_of("redis", "rocksdb"),
    storage=record(
        **each("claimName storageClassName subPath", TEXT),
        accessModes=rows(TEXT),
        deletionPolicy=one_of("DeleteWithCluster", "Retain"),
        size=QUANTITY,
    ),
)

TRAFFIC = {
    "egressRules": rows(kubernetes("api.networking.v1.NetworkPolicyEgressRule")),
    "ingressRules": rows(kubernetes("api.networking.v1.NetworkPolicyIngressRule")),
}
RAY_CLUSTER = record(
    "headGroupSpec",
    refusals.of_cluster,
    **each("enableInTreeAutoscaling idleSuspend suspend", YES_OR_NO),
    authOptions=record(enableK8sTokenAuth=YES_OR_NO, mode=one_of("disabled", "token"), secretName=TEXT),
    autoscalerOptions=record(
        **each("args command", rows(TEXT)),
        **each("image imagePullPolicy", TEXT),
        env=VARIABLES,
        envFrom=rows(kubernetes("api.core.v1.EnvFromSource")),
        idleTimeoutSeconds=NATURAL,  # the operator's; to the CRD any number
        resources=RESOURCES,
        securityContext=kubernetes("api.core.v1.SecurityContext"),
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        version=one_of("v1", "v2"),
        volumeMounts=rows(kubernetes("api.core.v1.VolumeMount")),
    ),
    gcsFaultToleranceOptions=FAULT_TOLERANCE,
    headGroupSpec=HEAD_GROUP,
    headServiceAnnotations=TEXTS,
    historyServerOptions=record(
        collectorOptions=record(**each("image imagePullPolicy", TEXT), env=VARIABLES, resources=RESOURCES)
    ),
    idleTerminationOptions=record("timeoutSeconds", policy=one_of("Delete", "Suspend"), timeoutSeconds=INT32),
    managedBy=MANAGED_BY,
    networkPolicy=record(
        **each("head worker", record(**TRAFFIC)),
        mode=one_of("DenyAll", "DenyAllIngress", "DenyAllEgress"),
        workerGroups=rows(record("groupName", groupName=TEXT, **TRAFFIC), "groupName"),
    ),
    rayVersion=TEXT,
    tlsOptions=record(enabled=YES_OR_NO),
    upgradeStrategy=record(type=one_of("Recreate", "None")),
    workerGroupSpecs=rows(WORKER_GROUP),
)

RAY_SERVICE = record(
    "rayClusterConfig",
    refusals.of_service,
    **each("deploymentUnhealthySecondThreshold serviceUnhealthySecondThreshold", INT32),
    **each("excludeHeadPodFromServeSvc suspend", YES_OR_NO),
    managedBy=MANAGED_BY,
    rayClusterConfig=RAY_CLUSTER,
    rayClusterDeletionDelaySeconds=NATURAL,
    serveConfigV2=TEXT,
    serveService=SERVICE,
    upgradeStrategy=record(
        clusterUpgradeOptions=record(
            "gatewayClassName intervalSeconds stepSizePercent",
            **each("intervalSeconds maxSurgePercent stepSizePercent", INT32),
            gatewayClassName=TEXT,
        ),
        type=one_of("NewClusterWithIncrementalUpgrade", "NewCluster", "None"),  # the operator's; to the CRD any text
    ),
)

POLICY = one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")
CONDITION = record(
    "",
    refusals.of_condition,
    jobDeploymentStatus=one_of("Failed"),
    jobStatus=one_of("SUCCEEDED", "FAILED"),
    ttlSeconds=NATURAL,
)
RAY_JOB = record(
    "",
    refusals.of_job,
    **each("entrypoint entrypointResources jobId runtimeEnvYAML", TEXT),
    **each("entrypointNumCpus entrypointNumGpus", NUMBER),
    **each("activeDeadlineSeconds preRunningDeadlineSeconds", POSITIVE),  # the first is the operator's
    **each("backoffLimit ttlSecondsAfterFinished", NATURAL),  # the operator's; to the CRD any numbers
    **each("clusterSelector metadata", TEXTS),
    **each("shutdownAfterJobFinishes suspend", YES_OR_NO),
    deletionStrategy=record(
        "",
        refusals.of_deletion,
        **each("onFailure onSuccess", record(policy=POLICY)),
        deletionRules=rows(record("condition policy", condition=CONDITION, policy=POLICY)) | {"minItems": 1},
    ),
    managedBy=MANAGED_BY,
    rayClusterSpec=RAY_CLUSTER,
    # Those of the Go type; to the CRD any text.
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterConfig=record(backoffLimit=INT32),
    submitterPodTemplate=POD,
)

SCRAPED = record(
    **each("port path interval scrapeTimeout", TEXT),
    relabelings=rows(record(**each("targetLabel replacement", TEXT))),
)
SELECTED = {"selector": record(matchLabels=TEXTS)}
# The operator appends 6 characters for the cluster's name and 10 more for that of its service, which has 63 at most.
RAY_METADATA = {
    "name": {"pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47},
    "annotations": {"propertyNames": {"not": one_of("ray.io/ft-enabled", "ray.io/external-storage-namespace")}},
}
SCHEMAS = {  # of the metadata, beyond what is Kubernetes' own, and of the spec
    ("ray.io/v1", "RayService"): (RAY_METADATA, RAY_SERVICE),
    ("ray.io/v1", "RayJob"): (RAY_METADATA, RAY_JOB),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): (
        {},
        record("selector endpoints", endpoints=rows(SCRAPED), **SELECTED),
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): ({}, record("selector", podMetricsEndpoints=rows(SCRAPED), **SELECTED)),
}
