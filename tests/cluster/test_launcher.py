"""The configurations for `ray up`, as Ray reads them itself; no cloud is asked."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml

from tests.commands import ROOT

FOLDER = ROOT / "cluster" / "launcher"
CLOUDS = ["aws", "gcp"]
Config = dict[str, Any]


def load(cloud: str) -> Config:
    return yaml.safe_load((FOLDER / f"{cloud}.yaml").read_text())


def prepared(config: Config) -> Config:
    """With the defaults of Ray's provider, checked as `ray up` does before it asks the cloud.

    Raises:
        jsonschema.ValidationError, ValueError, AssertionError: Ray refuses it.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(config))
    validate_config(config)
    return config


def of_type(config: Config, name: str) -> tuple[Config, Config]:
    """A node type and what it asks of the cloud."""
    node_type = config["available_node_types"][name]
    return node_type, node_type["node_config"]


def is_spot(machine: Config) -> bool:
    return (
        machine.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or machine.get("scheduling", {}).get("provisioningModel") == "SPOT"
    )


def test_there_is_one_for_each_cloud() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == CLOUDS


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_takes_it(cloud: str) -> None:
    config = prepared(load(cloud))
    head, machine = of_type(config, config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert not is_spot(machine)
    for name in ("cpu", "gpu"):
        workers, machine = of_type(config, name)
        assert 1 <= workers["min_workers"] < workers["max_workers"] <= config["max_workers"]
        assert is_spot(machine)
        assert ("GPU" in workers["resources"]) == (name == "gpu")
        assert ("--gpus all" in workers.get("docker", {}).get("worker_run_options", [])) == (name == "gpu")
    assert sum(of_type(config, name)[0]["max_workers"] for name in ("cpu", "gpu")) <= config["max_workers"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_starts_from_the_image_with_a_token_and_shared_memory(cloud: str) -> None:
    config = prepared(load(cloud))
    options = config["docker"]["run_options"]
    assert any(option.startswith("--shm-size=") for option in options)
    environment = dict(option.removeprefix("--env ").split("=", 1) for option in options if option.startswith("--env "))
    assert environment["RAY_AUTH_MODE"] == "token"
    # The folder that is copied to every machine is the one that the environment names, under the image's home.
    ((mounted, source),) = config["file_mounts"].items()
    home = re.search(r"^ENV HOME=(\S+)$", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)
    assert home is not None
    assert environment["RAY_AUTH_TOKEN_PATH"] == mounted.replace("~", home[1]) + "/auth_token"
    assert source.startswith("~/.ray/")
    # Nothing is installed over what the image holds: Ray's own defaults fetch another Ray.
    assert config["setup_commands"] == config["head_setup_commands"] == config["worker_setup_commands"] == []
    head, worker = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    assert all(commands[0] == "ray stop" and "ulimit -n 65536" in commands[1] for commands in (head, worker))
    assert "--head --num-cpus=0" in head[1]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head[1]
    assert "--dashboard-host=127.0.0.1" in head[1]
    assert "--address=$RAY_HEAD_IP:6379" in worker[1]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_machines_have_roles_and_no_keys(cloud: str) -> None:
    text = (FOLDER / f"{cloud}.yaml").read_text()
    assert not re.search(r"(?i)access_key|secret|password=|private_key|AKIA", text)
    config = load(cloud)
    for name in config["available_node_types"]:
        _, machine = of_type(config, name)
        if cloud == "aws":
            head = name == config["head_node_type"]
            assert machine["IamInstanceProfile"] == {"Name": f"msrcnn-{'head' if head else 'worker'}"}
            assert machine["ImageId"].startswith("ami-")  # without, Ray takes one whose driver is too old
        elif name != config["head_node_type"]:  # the head's is made by Ray
            assert machine["serviceAccounts"][0]["email"].startswith("msrcnn@")


def test_both_clouds_run_the_same_image_alike() -> None:
    aws, gcp = load("aws"), load("gcp")
    same = ("docker", "file_mounts", "head_start_ray_commands", "worker_start_ray_commands", "max_workers")
    for name in same:
        assert aws[name] == gcp[name]
    kustomization = yaml.safe_load((ROOT / "cluster" / "kuberay" / "base" / "kustomization.yaml").read_text())
    (image,) = kustomization["images"]
    assert aws["docker"]["image"] == f"{image['newName']}:{image['newTag']}"


def misspell(config: Config) -> None:
    config["max_worker"] = config.pop("max_workers")


def misspell_node_type(config: Config) -> None:
    config["available_node_types"]["gpu"]["min_worker"] = 1


def misspell_docker(config: Config) -> None:
    config["docker"]["run_option"] = []


def other_head(config: Config) -> None:
    config["head_node_type"] = "heads"


def too_many(config: Config) -> None:
    config["available_node_types"]["gpu"]["min_workers"] = 99


def no_container(config: Config) -> None:
    del config["docker"]["container_name"]


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(
    "break_it", [misspell, misspell_node_type, misspell_docker, other_head, too_many, no_container]
)
def test_ray_refuses_a_broken_one(cloud: str, break_it: Callable[[Config], None]) -> None:
    config = load(cloud)
    break_it(config)
    with pytest.raises((jsonschema.ValidationError, ValueError, AssertionError)):
        prepared(config)
