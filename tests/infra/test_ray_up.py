"""infra/ray-up/: what Ray's own validation says to it, and that nothing is open to the world."""

from __future__ import annotations

import copy

import jsonschema
import pytest
import yaml

from pnp_batch.config import default_of
from tests.infra.places import IMAGE, INFRA, documents

FILES = sorted(path.name for path in (INFRA / "ray-up").glob("*.yaml"))


@pytest.fixture(params=FILES)
def cluster(request):
    (config,) = documents(f"ray-up/{request.param}")
    return config


def validate(config):
    """As `ray up` does, up to the point where it calls the cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_both_clouds_are_there():
    assert FILES == ["aws.yaml", "gcp.yaml"]


def test_ray_accepts_it(cluster):
    prepared = validate(cluster)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    assert prepared["head_node_type"] == "head"


@pytest.mark.parametrize("place", [(), ("provider", "security_group"), ("auth",), ("docker",)])
def test_ray_refuses_a_misspelt_field(cluster, place):
    spoilt = cluster
    for step in place:
        spoilt = spoilt.setdefault(step, {})
    spoilt["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        validate(cluster)


def test_the_head_has_no_work_and_workers_come_and_go(cluster):
    head, worker = (cluster["available_node_types"][name] for name in ("head", "worker"))
    assert head["resources"] == {"CPU": 0}
    (start,) = [c for c in cluster["head_start_ray_commands"] if "ray start" in c]
    assert "--num-cpus=0" in start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    assert worker["resources"]["GPU"] == 1
    assert worker["min_workers"] == 1, "a run looks at a GPU before it asks for more"
    assert worker["max_workers"] == cluster["max_workers"]
    assert cluster["idle_timeout_minutes"] <= 10
    assert not cluster["provider"]["cache_stopped_nodes"]


def test_workers_are_spot():
    (aws,), (gcp,) = documents("ray-up/aws.yaml"), documents("ray-up/gcp.yaml")
    nodes = aws["available_node_types"]
    assert nodes["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"]
    nodes = gcp["available_node_types"]
    assert nodes["worker"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "scheduling" not in nodes["head"]["node_config"]


def test_no_port_is_open_to_the_world(cluster):
    assert cluster["provider"]["use_internal_ips"]
    assert "0.0.0.0" not in yaml.safe_dump(cluster)
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])
    # SSH goes through the cloud's own door, by the node's id.
    assert "%h" in cluster["auth"]["ssh_proxy_command"]
    assert cluster["auth"]["ssh_proxy_use_node_id"]
    for node in cluster["available_node_types"].values():
        config = node["node_config"]
        if cluster["provider"]["type"] == "aws":
            # Ray would make a group of its own that opens SSH to everybody.
            assert config["SecurityGroupIds"]
            assert config["MetadataOptions"]["HttpTokens"] == "required"
        else:
            assert all("accessConfigs" not in face for face in config["networkInterfaces"])


def test_the_token_is_mounted_and_asked_for(cluster):
    assert cluster["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    options = cluster["docker"]["run_options"]
    assert "--env=RAY_AUTH_MODE=token" in options
    assert not [option for option in options if "RAY_AUTH_TOKEN" in option]


def test_the_container_is_the_image_and_confined(cluster):
    docker = cluster["docker"]
    assert docker["image"].rpartition("/")[2] == IMAGE
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(docker["run_options"])
    assert docker["worker_run_options"] == ["--gpus=all"]
    (waits,) = [o for o in docker["run_options"] if "RAY_JOB_STOP_WAIT_TIME_S" in o]
    assert int(waits.rpartition("=")[2]) > default_of("drain_timeout")
