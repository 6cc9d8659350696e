"""infra/kuberay/: what KubeRay's own schema says to it, and that its parts fit each other."""

from __future__ import annotations

import copy
import re
import shlex
from importlib import import_module

import jsonschema
import pytest

from pnp_batch.cli import COMMANDS
from pnp_batch.config import default_of
from tests.infra import schema
from tests.infra.places import IMAGE, INFRA, PINS, documents

RULES = schema.strict(schema.kept())
NETWORK = RULES["properties"]["spec"]["properties"]["rayClusterSpec"]["properties"]["networkPolicy"]
(JOB,) = documents("kuberay/translate.yaml")
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD = CLUSTER["headGroupSpec"]
(WORKERS,) = CLUSTER["workerGroupSpecs"]
TEMPLATES = {
    "submitter": JOB["spec"]["submitterPodTemplate"],
    "head": HEAD["template"],
    "worker": WORKERS["template"],
}
PODS = {name: template["spec"] for name, template in TEMPLATES.items()}
POLICIES = {
    policy["metadata"]["name"]: policy["spec"] for policy in documents("kuberay/network.yaml")
}


def refusal(job):
    """What the schema says against a job, with the path of the field; None if nothing."""
    error = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(RULES).iter_errors(job)
    )
    return error and f"{error.json_path}: {error.message}"


def test_the_job_fits_kuberays_schema():
    jsonschema.Draft202012Validator.check_schema(RULES)
    assert refusal(JOB) is None


@pytest.mark.parametrize(
    ("path", "name", "misspelt"),
    [
        (("spec",), "ttlSecondsAfterFinished", "ttlSecondsAfterFinish"),
        (("spec", "rayClusterSpec"), "authOptions", "authOption"),
        (("spec", "rayClusterSpec", "autoscalerOptions"), "version", "autoscalerVersion"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0), "maxReplicas", "maxReplica"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec"), "volumes", "volume"),
        (
            (
                "spec",
                "rayClusterSpec",
                "workerGroupSpecs",
                0,
                "template",
                "spec",
                "securityContext",
            ),
            "runAsNonRoot",
            "runAsNonroot",
        ),
        (
            ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0),
            "envFrom",
            "envfrom",
        ),
    ],
)
def test_a_misspelt_field_is_refused(path, name, misspelt):
    job = copy.deepcopy(JOB)
    place = job
    for step in path:
        place = place[step]
    place[misspelt] = place.pop(name)
    assert misspelt in refusal(job)


def test_a_value_of_the_wrong_kind_is_refused():
    job = copy.deepcopy(JOB)
    job["spec"]["backoffLimit"] = "three"
    assert "$.spec.backoffLimit" in refusal(job)


@pytest.mark.parametrize("name", POLICIES)
def test_the_network_policies_fit_their_schema(name):
    rules = NETWORK["properties"]["head"]["properties"]
    policy = POLICIES[name]
    assert set(policy) <= {"podSelector", "policyTypes", "ingress", "egress"}
    for direction, kind in (("ingress", "Ingress"), ("egress", "Egress")):
        jsonschema.validate(policy.get(direction, []), rules[f"{direction}Rules"])
        assert kind in policy["policyTypes"] or direction not in policy


def test_versions_are_those_of_the_project():
    assert CLUSTER["rayVersion"] == PINS["ray"]
    images = {container["image"] for pod in PODS.values() for container in pod["containers"]}
    assert {image.rpartition("/")[2] for image in images} == {IMAGE}
    assert len(images) == 1, "head, workers and submitter must have the same Ray"


def test_the_entrypoint_is_a_command_that_the_package_knows():
    program, name, *arguments = shlex.split(JOB["spec"]["entrypoint"])
    assert program == "pnp-batch"
    context = getattr(import_module(COMMANDS[name]), name).make_context(name, arguments)
    assert context.params["address"] == "auto"
    assert context.params["device"] == "cuda", "never on CPUs, in silence"


def test_workers_and_nodes_agree():
    (wanted,) = re.findall(r"--workers (\d+):(\d+)", JOB["spec"]["entrypoint"])
    (container,) = PODS["worker"]["containers"]
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert WORKERS["minReplicas"] * gpus == WORKERS["replicas"] * gpus == int(wanted[0])
    assert WORKERS["maxReplicas"] * gpus == int(wanted[1])
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in PODS["head"]["containers"][0]["resources"]["limits"]
    assert container["resources"]["requests"].items() - {("ephemeral-storage", "20Gi")} <= (
        container["resources"]["limits"].items()
    )


@pytest.mark.parametrize("pod", ["head", "worker"])
def test_who_is_stopped_has_time_to_drain(pod):
    (head,) = PODS["head"]["containers"]
    (waits,) = [int(e["value"]) for e in head["env"] if e["name"] == "RAY_JOB_STOP_WAIT_TIME_S"]
    (container,) = PODS[pod]["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert default_of("drain_timeout") < waits <= pause
    assert pause < PODS[pod]["terminationGracePeriodSeconds"]


def test_the_cluster_ends_with_the_job():
    spec = JOB["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] <= 600
    assert spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    # Every retry would have it anew.
    assert "--budget-hours" not in spec["entrypoint"]


@pytest.mark.parametrize("pod", PODS)
def test_no_pod_can_more_than_it_must(pod):
    spec = PODS[pod]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 1000  # the image's
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    # Only the head's autoscaler calls Kubernetes.
    assert (pod == "head") is spec.get("automountServiceAccountToken", True)
    volumes = {volume["name"] for volume in spec["volumes"]}
    confined = [*spec["containers"], *([CLUSTER["autoscalerOptions"]] if pod == "head" else [])]
    for container in confined:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
        assert {"/tmp", "/home/ray"} <= set(mounts), "Ray writes there"
        assert {mount["name"] for mount in mounts.values()} <= volumes
        assert mounts.get("/models", {"readOnly": True})["readOnly"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_credentials_come_from_secrets_alone():
    assert CLUSTER["authOptions"] == {"mode": "token", "secretName": "pnp-batch-ray-token"}
    assert "runtimeEnvYAML" not in JOB["spec"]
    for pod in ("head", "worker"):
        (container,) = PODS[pod]["containers"]
        assert container["envFrom"] == [
            {"secretRef": {"name": "pnp-batch-storage", "optional": True}}
        ]
    kinds = [d["kind"] for path in INFRA.glob("kuberay/*.yaml") for d in documents(path)]
    assert "Secret" not in kinds


def selects(selector, pod):
    return selector["matchLabels"].items() <= TEMPLATES[pod]["metadata"]["labels"].items()


def test_only_the_submitter_the_operator_and_prometheus_come_in():
    assert POLICIES["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ray = POLICIES["ray"]
    assert selects(ray["podSelector"], "head")
    assert selects(ray["podSelector"], "worker")
    assert selects(POLICIES["submitter"]["podSelector"], "submitter")
    assert not selects(ray["podSelector"], "submitter")
    among_themselves, jobs, metrics = ray["ingress"]
    assert among_themselves == {"from": [{"podSelector": ray["podSelector"]}]}
    assert [port["port"] for port in jobs["ports"]] == [8265]
    assert selects(jobs["from"][0]["podSelector"], "submitter")
    assert jobs["from"][1]["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "kuberay-operator"
    }
    assert [port["port"] for port in metrics["ports"]] == [8080]
    ports = {p["name"]: p["containerPort"] for p in PODS["head"]["containers"][0]["ports"]}
    assert ports["dashboard"] == 8265
    assert ports["metrics"] == 8080


def test_nothing_goes_to_the_nodes_metadata_service():
    outside = [
        (peer["ipBlock"], [port["port"] for port in rule["ports"]])
        for rule in POLICIES["ray"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    everywhere = [(b, ports) for b, ports in outside if b["cidr"] == "0.0.0.0/0"]
    assert everywhere == [({"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}, [443, 6443])]
    assert "169.254.169.254/32" not in {block["cidr"] for block, _ in outside}


def test_prometheus_finds_head_and_workers():
    (monitor,) = documents("kuberay/monitor.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for pod in ("head", "worker"):
        assert selects(monitor["spec"]["selector"], pod)
        (container,) = PODS[pod]["containers"]
        assert endpoint["port"] in {port["name"] for port in container["ports"]}


def test_everything_lies_in_the_namespace_that_is_made():
    things = [d for path in INFRA.glob("kuberay/*.yaml") for d in documents(path)]
    (namespace,) = [d for d in things if d["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    inside = [d for d in things if d["kind"] != "Namespace"]
    assert {d["metadata"]["namespace"] for d in inside} == {namespace["metadata"]["name"]}
    made = {(d["kind"], d["metadata"]["name"]) for d in inside}
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in PODS.values()
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    accounts = {pod["serviceAccountName"] for pod in PODS.values() if "serviceAccountName" in pod}
    assert {("PersistentVolumeClaim", name) for name in claims} <= made
    assert {("ServiceAccount", name) for name in accounts} <= made
