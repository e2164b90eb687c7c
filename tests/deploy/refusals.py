"""What is refused of a RayService or a RayJob although each of its fields is right: in words, and whether it is there.

These are the rules of KubeRay's CRDs, but for those that need an older object, and what the operator refuses although
the CRD takes it, for a RayCluster that a RayService or a RayJob makes: in our words, from
ray-operator/controllers/ray/utils/validation.go at the commit that custom_resources.py names.  Refused here and not
always there: what has a feature gate since 1.7 (taken to be off), and the older way to tell of Redis, by variables
and annotations.  Left out: the order in time of deletionRules, runtimeEnvYAML being YAML, ray.io/initializing-timeout.
"""

import re

SWITCH = "RAY_enable_autoscaler_v2"
REDIS = {"RAY_REDIS_ADDRESS", "REDIS_USERNAME", "REDIS_PASSWORD", "redis-username", "redis-password"}


def variables(group: dict) -> dict[str, str]:
    """Those of Ray's own container, which is the first."""
    return {row["name"]: row.get("value", "") for row in group["template"]["spec"]["containers"][0].get("env", [])}


def restarts(group: dict) -> bool:
    return group["template"]["spec"].get("restartPolicy", "Never") != "Never"


def of_group(it: dict) -> dict[str, object]:
    started = it.get("rayStartParams", {}).keys()
    return {
        "labels in rayStartParams": "labels" in started,
        "resources in two places": it.get("resources") and started & {"num-cpus", "num-gpus", "memory", "resources"},
        "minReplicas above maxReplicas": it.get("minReplicas", 0) > it.get("maxReplicas", 0),
    }


def of_second_head(it: dict) -> dict[str, object]:
    lease, renew = it.get("leaseDurationSeconds", 15), it.get("renewDeadlineSeconds", 10)
    return {
        "leaseDurationSeconds not greater than renewDeadlineSeconds": lease <= renew,
        "renewDeadlineSeconds not greater than retryPeriodSeconds": renew <= it.get("retryPeriodSeconds", 2),
    }


def of_fault_tolerance(it: dict) -> dict[str, object]:
    return {
        "rocksdb, which has a feature gate": it.get("backend") == "rocksdb",
        "a second head, which has a feature gate": it.get("activePassiveHeadOptions", {}).get("enabled"),
        "redis without redisAddress": not it.get("redisAddress"),
        "redis with storage": "storage" in it,
    }


def of_cluster(it: dict) -> dict[str, object]:
    head, workers, auth = it["headGroupSpec"], it.get("workerGroupSpecs", []), it.get("authOptions", {})
    scaled, scaler, told = it.get("enableInTreeAutoscaling"), it.get("autoscalerOptions", {}), variables(head)
    second = scaler.get("version") == "v2"
    switched = told.get(SWITCH) in ("1", "true")
    ray = tuple(int(number) for number in re.findall(r"\d+", it.get("rayVersion", "")))
    priority = any(each.get("priority") for each in workers)
    return {
        "what has a feature gate": it.keys() & {"historyServerOptions", "networkPolicy", "tlsOptions"},
        "idleTerminationOptions of a cluster that is made": "idleTerminationOptions" in it,
        "upgradeStrategy of a cluster that is made": it.get("upgradeStrategy", {}).get("type"),
        "enableK8sTokenAuth of a cluster that is made": auth.get("enableK8sTokenAuth"),
        "a token before Ray 2.52": auth.get("mode") == "token" and ray < (2, 52),
        "topology before Ray 2.45": ray < (2, 45) and any(e.get("topology", {}).get("labelMappings") for e in workers),
        "priority before Ray 2.56": priority and ray < (2, 56),
        "priority without the autoscaler v2": priority and not (second or switched),
        "idleTimeoutSeconds of a group without the autoscaler v2": not (second or switched)
        and any("idleTimeoutSeconds" in each for each in workers),
        "a group that is suspended under the autoscaler": scaled and any(each.get("suspend") for each in workers),
        "the autoscaler v2 without enableInTreeAutoscaling": switched and not scaled,
        "the autoscaler's version in two places": scaled and "version" in scaler and SWITCH in told,
        "a pod that restarts under the autoscaler v2": scaled and second and any(map(restarts, [head, *workers])),
        "the autoscaler's own command": "KUBERAY_GEN_AUTOSCALER_START_CMD"
        in {e["name"] for e in scaler.get("env", [])},
        "redis outside of gcsFaultToleranceOptions": REDIS & (told.keys() | head.get("rayStartParams", {}).keys()),
    }


def of_service(it: dict) -> dict[str, object]:
    cluster, upgrade = it["rayClusterConfig"], it.get("upgradeStrategy", {})
    in_steps, options = upgrade.get("type") == "NewClusterWithIncrementalUpgrade", upgrade.get("clusterUpgradeOptions")
    step, surge = (options or {}).get("stepSizePercent", 0), (options or {}).get("maxSurgePercent", 100)
    return {
        "a name for headService": cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"),
        "an upgrade in steps without the autoscaler": in_steps and not cluster.get("enableInTreeAutoscaling"),
        "an upgrade in steps without clusterUpgradeOptions": in_steps and not options,
        "steps that are no percentages": in_steps and not 0 <= step <= surge <= 100,
        "steps without a time": in_steps and options and options["intervalSeconds"] <= 0,
        "steps without a gateway class": in_steps and options and not options["gatewayClassName"],
    }


def of_condition(it: dict) -> dict[str, object]:
    return {"jobStatus and jobDeploymentStatus, or neither": ("jobStatus" in it) == ("jobDeploymentStatus" in it)}


def of_deletion(it: dict) -> dict[str, object]:
    return {
        "other than onSuccess and onFailure or deletionRules": {*it}
        not in ({"onSuccess", "onFailure"}, {"deletionRules"})
    }


def of_job(it: dict) -> dict[str, object]:
    cluster, chosen, mode = it.get("rayClusterSpec", {}), it.get("clusterSelector"), it.get("submissionMode")
    stays, suspended, retried = not it.get("shutdownAfterJobFinishes"), it.get("suspend"), it.get("backoffLimit")
    strategy = it.get("deletionStrategy", {})
    rules = strategy.get("deletionRules", [])
    ends = {each.get("policy") for each in rules or strategy.values()}
    sidecar = mode == "SidecarMode"
    return {
        "suspend without shutdownAfterJobFinishes": suspended and stays,
        "ttlSecondsAfterFinished without shutdownAfterJobFinishes": it.get("ttlSecondsAfterFinished") and stays,
        "neither rayClusterSpec nor clusterSelector": not cluster and not chosen,
        "clusterSelector without ray.io/cluster": chosen and not chosen.get("ray.io/cluster"),
        "clusterSelector with suspend, backoffLimit or SidecarMode": chosen and (suspended or retried or sidecar),
        "clusterSelector with the deletion of a cluster": chosen and ends & {"DeleteCluster", "DeleteWorkers"},
        "backoffLimit in InteractiveMode": retried and mode == "InteractiveMode",
        "a submitter in SidecarMode": sidecar and it.keys() & {"submitterPodTemplate", "submitterConfig"},
        "a head that restarts in SidecarMode": sidecar and cluster and restarts(cluster["headGroupSpec"]),
        "onSuccess or onFailure without a policy": None in ends,
        "deletionRules with shutdownAfterJobFinishes": rules and not stays,
        "DeleteNone with shutdownAfterJobFinishes": "DeleteNone" in ends and not stays,
        "DeleteWorkers under the autoscaler": "DeleteWorkers" in ends and cluster.get("enableInTreeAutoscaling"),
    }
