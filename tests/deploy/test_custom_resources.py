"""The tables of custom_resources.py and refusals.py: what each of them refuses, on the manifests of deploy/k8s."""

import copy

import jsonschema
import pytest

from tests.deploy.test_k8s import render, validate

GONE = object()
CLUSTER = "rayClusterConfig"
HEAD, WORKERS, SCALER = f"{CLUSTER}.headGroupSpec", f"{CLUSTER}.workerGroupSpecs.0", f"{CLUSTER}.autoscalerOptions"
REDIS, STRATEGY = f"{CLUSTER}.gcsFaultToleranceOptions", "deletionStrategy"
V2 = {f"{SCALER}.version": "v2"}
SWITCH = {f"{HEAD}.template.spec.containers.0.env": [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]}
STEPS = {"type": "NewClusterWithIncrementalUpgrade"}
OPTIONS = {"stepSizePercent": 5, "intervalSeconds": 10, "gatewayClassName": "a"}
SELECTED = {"rayClusterSpec": GONE, "clusterSelector": {"ray.io/cluster": "a"}, "suspend": False}
KEPT, HALVED = {"policy": "DeleteNone"}, {"policy": "DeleteWorkers"}
UNTIMED = {"shutdownAfterJobFinishes": False, "ttlSecondsAfterFinished": 0}
DELETED = {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED"}}


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict]:
    return {each["kind"]: each for each in render("cpu")}


def changed(manifest: dict, changes: dict[str, object]) -> dict:
    """A copy with other values at these places of its spec; what is GONE is not there."""
    manifest = copy.deepcopy(manifest)
    for path, value in changes.items():
        *way, last = path.split(".")
        place = manifest["spec"]
        for step in way:
            place = place[int(step)] if step.isdigit() else place.setdefault(step, {})
        place[last] = value
        if value is GONE:
            del place[last]
    return manifest


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        # the CRD
        ({f"{WORKERS}.replicas": "2"}, "'2' is not of type 'integer'"),
        ({f"{WORKERS}.replicas": 2**31}, "maximum of 2147483647"),
        ({f"{WORKERS}.rayStartParams": {"num-cpus": 1}}, "1 is not of type 'string'"),
        ({f"{WORKERS}.groupName": GONE}, "'groupName' is a required property"),
        ({f"{WORKERS}.scaleStrategy": {"scaleGate": [{"type": "a/b"}] * 2}}, "a type twice"),
        ({f"{SCALER}.upscalingMode": "Fast"}, "'Fast' is not one of"),
        ({f"{REDIS}.storage": {"size": "1 GB"}}, "'1 GB' does not match"),
        ({f"{REDIS}.activePassiveHeadOptions": {"leaseDurationSeconds": 10}}, "leaseDurationSeconds not greater"),
        ({f"{REDIS}.activePassiveHeadOptions": {"retryPeriodSeconds": 10}}, "renewDeadlineSeconds not greater"),
        ({"rayClusterDeletionDelaySeconds": -1}, "minimum of 0"),
        ({"managedBy": "us"}, "'us' is not one of"),
        ({CLUSTER: GONE}, "'rayClusterConfig' is a required property"),
        # Kubernetes' own inside of it
        ({f"{SCALER}.resources.limits": 1}, "1 is not of type 'object'"),
        ({f"{SCALER}.securityContext.runAsUsr": 1}, "'runAsUsr' was unexpected"),
        ({f"{HEAD}.template.metadata.ownerReferences": []}, "'ownerReferences' was unexpected"),
        ({"serveService": {"spec": {"ports": [{"name": "serve"}]}}}, "'port' is a required property"),
        # the operator
        ({f"{HEAD}.template.spec.containers": []}, "non-empty"),
        ({f"{HEAD}.labels": {"a b": "c"}}, "'a b' does not match"),
        ({f"{HEAD}.rayStartParams.labels": "a=b"}, "labels in rayStartParams"),
        ({f"{WORKERS}.resources": {"CPU": "1"}}, "resources in two places"),
        ({f"{WORKERS}.minReplicas": 11}, "minReplicas above maxReplicas"),
        ({f"{WORKERS}.suspend": True}, "suspended under the autoscaler"),
        ({f"{WORKERS}.idleTimeoutSeconds": 60}, "idleTimeoutSeconds of a group without the autoscaler v2"),
        ({f"{WORKERS}.priority": 1}, "priority without the autoscaler v2"),
        (V2 | {f"{WORKERS}.priority": 1, f"{CLUSTER}.rayVersion": "2.55.1"}, "priority before Ray 2.56"),
        (
            {f"{WORKERS}.topology": {"labelMappings": [{"nodeLabel": "zone"}]}, f"{CLUSTER}.rayVersion": "2.44.0"},
            "topology before Ray 2.45",
        ),
        (V2 | {f"{WORKERS}.template.spec.restartPolicy": "Always"}, "a pod that restarts"),
        (V2 | SWITCH, "version in two places"),
        (SWITCH | {f"{CLUSTER}.enableInTreeAutoscaling": False}, "without enableInTreeAutoscaling"),
        ({f"{SCALER}.env": [{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD"}]}, "the autoscaler's own command"),
        ({f"{SCALER}.idleTimeoutSeconds": -1}, "minimum of 0"),
        ({f"{HEAD}.rayStartParams.redis-password": "a"}, "redis outside of gcsFaultToleranceOptions"),
        ({f"{HEAD}.template.spec.containers.0.env": [{"name": "RAY_REDIS_ADDRESS"}]}, "redis outside"),
        ({f"{REDIS}.backend": "redis"}, "redis without redisAddress"),
        ({f"{REDIS}.redisAddress": "a", f"{REDIS}.storage": {}}, "redis with storage"),
        ({f"{REDIS}.redisAddress": "a", f"{REDIS}.backend": "rocksdb"}, "rocksdb, which has a feature gate"),
        ({f"{REDIS}.redisAddress": "a", f"{REDIS}.activePassiveHeadOptions": {"enabled": True}}, "a second head"),
        ({f"{CLUSTER}.networkPolicy": {}}, "what has a feature gate"),
        ({f"{CLUSTER}.authOptions": {"mode": "token"}, f"{CLUSTER}.rayVersion": "2.51.0"}, "a token before Ray 2.52"),
        ({f"{CLUSTER}.authOptions": {"enableK8sTokenAuth": True}}, "enableK8sTokenAuth of a cluster that is made"),
        ({f"{CLUSTER}.idleTerminationOptions": {"timeoutSeconds": 60}}, "idleTerminationOptions of a cluster"),
        ({f"{CLUSTER}.upgradeStrategy": {"type": "Recreate"}}, "upgradeStrategy of a cluster that is made"),
        ({f"{HEAD}.headService": {"metadata": {"name": "head"}}}, "a name for headService"),
        ({"upgradeStrategy": STEPS}, "without clusterUpgradeOptions"),
        ({"upgradeStrategy": STEPS | {"clusterUpgradeOptions": OPTIONS | {"stepSizePercent": 101}}}, "no percentages"),
        ({"upgradeStrategy": STEPS | {"clusterUpgradeOptions": OPTIONS | {"intervalSeconds": 0}}}, "without a time"),
        ({"upgradeStrategy": STEPS | {"clusterUpgradeOptions": OPTIONS | {"gatewayClassName": ""}}}, "a gateway class"),
        (
            {
                "upgradeStrategy": STEPS | {"clusterUpgradeOptions": OPTIONS},
                f"{CLUSTER}.enableInTreeAutoscaling": False,
            },
            "in steps without the autoscaler",
        ),
    ],
)
def test_a_service_that_kuberay_would_refuse_is_refused(manifests, changes, complaint):
    with pytest.raises(jsonschema.ValidationError, match=complaint):
        validate(changed(manifests["RayService"], changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        # the CRD
        ({"suspend": "true"}, "'true' is not of type 'boolean'"),
        ({STRATEGY: {"deletionRules": []}}, "non-empty"),
        ({STRATEGY: {"onSuccess": {"policy": "DeleteSelf"}}}, "other than onSuccess and onFailure"),
        ({STRATEGY: {"deletionRules": [DELETED | {"condition": {}}]}}, "jobStatus and jobDeploymentStatus, or neither"),
        # Kubernetes' own inside of it
        ({"submitterPodTemplate.spec.containers": [{"image": "a"}]}, "'name' is a required property"),
        # the operator
        ({"activeDeadlineSeconds": 0}, "minimum of 1"),
        ({"submissionMode": "Sidecar"}, "'Sidecar' is not one of"),
        ({"shutdownAfterJobFinishes": False}, "suspend without shutdownAfterJobFinishes"),
        ({"shutdownAfterJobFinishes": False, "suspend": False}, "ttlSecondsAfterFinished without"),
        ({"rayClusterSpec": GONE}, "neither rayClusterSpec nor clusterSelector"),
        (SELECTED | {"clusterSelector": {"a": "b"}}, "clusterSelector without ray.io/cluster"),
        (SELECTED | {"suspend": True}, "clusterSelector with suspend"),
        (SELECTED | {"backoffLimit": 1}, "clusterSelector with suspend, backoffLimit"),
        (
            SELECTED | UNTIMED | {STRATEGY: {"deletionRules": [DELETED]}},
            "clusterSelector with the deletion of a cluster",
        ),
        ({"submissionMode": "InteractiveMode", "backoffLimit": 1}, "backoffLimit in InteractiveMode"),
        ({"submissionMode": "SidecarMode"}, "a submitter in SidecarMode"),
        (
            {
                "submissionMode": "SidecarMode",
                "submitterPodTemplate": GONE,
                "rayClusterSpec.headGroupSpec.template.spec.restartPolicy": "Always",
            },
            "a head that restarts in SidecarMode",
        ),
        ({STRATEGY: {"onSuccess": {}, "onFailure": {}}}, "without a policy"),
        ({STRATEGY: {"deletionRules": [DELETED]}}, "deletionRules with shutdownAfterJobFinishes"),
        ({STRATEGY: {"onSuccess": KEPT, "onFailure": KEPT}}, "DeleteNone with"),
        (
            {
                STRATEGY: {"onSuccess": HALVED, "onFailure": HALVED},
                "rayClusterSpec.enableInTreeAutoscaling": True,
            },
            "DeleteWorkers under the autoscaler",
        ),
    ],
)
def test_a_job_that_kuberay_would_refuse_is_refused(manifests, changes, complaint):
    with pytest.raises(jsonschema.ValidationError, match=complaint):
        validate(changed(manifests["RayJob"], changes))


@pytest.mark.parametrize(
    "metadata", [{"name": "g" * 48}, {"name": "1"}, {"annotations": {"ray.io/ft-enabled": "true"}}]
)
def test_metadata_that_kuberay_would_refuse_is_refused(manifests, metadata):
    service = manifests["RayService"]
    with pytest.raises(jsonschema.ValidationError):
        validate(service | {"metadata": service["metadata"] | metadata})


def test_what_kuberay_takes_is_taken(manifests):
    service = V2 | {
        f"{WORKERS}.idleTimeoutSeconds": 60,
        f"{WORKERS}.priority": 1,
        f"{WORKERS}.labels": {"ray.io/zone": "a"},
        f"{CLUSTER}.authOptions": {"mode": "token"},
        REDIS: {"redisAddress": "redis:6379", "redisPassword": {"value": "a"}},
        "upgradeStrategy": STEPS | {"clusterUpgradeOptions": OPTIONS},
    }
    validate(changed(manifests["RayService"], service))
    validate(changed(manifests["RayJob"], SELECTED | {"submissionMode": "HTTPMode"}))
    validate(changed(manifests["RayJob"], UNTIMED | {"suspend": False, STRATEGY: {"deletionRules": [DELETED]}}))
