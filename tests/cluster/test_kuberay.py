"""The manifests for KubeRay: they render, KubeRay would take them, their commands are ours. Needs no cluster."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.options import worker_range
from pipelines.serving_options import ServiceOptions
from pipelines.verbs import VERBS, parse
from tests.commands import ROOT

FOLDER = ROOT / "cluster" / "kuberay"
JOBS = {"train-gpu": "train", "evaluate-cpu": "evaluate", "sweep": "sweep"}
OVERLAYS = [*JOBS, "cluster", "serve-gpu"]
KINDS = {"cluster": "RayCluster", "serve-gpu": "RayService"}
CLUSTERS = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""Where in its specification a kind has the cluster's."""
SCHEMA = json.loads((Path(__file__).parent / "kuberay_schema.json").read_text())
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
REFERENCES = ("secretKeyRef", "secretRef", "secretName", "key")
"""Names that lead to a secret, or to a taint, and hold none."""
Manifest = dict[str, Any]

needs_kustomize = pytest.mark.skipif(
    not (shutil.which("kubectl") or shutil.which("kustomize")), reason="neither kubectl nor kustomize is installed"
)


@cache
def render(overlay: str) -> str:
    program = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    done = subprocess.run([*program, str(FOLDER / "overlays" / overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifests(overlay: str) -> dict[str, Manifest]:
    """What an overlay applies, by kind."""
    loaded = list(yaml.safe_load_all(render(overlay)))
    by_kind = {manifest["kind"]: manifest for manifest in loaded}
    assert len(by_kind) == len(loaded)
    return by_kind


def ray_manifest(overlay: str) -> Manifest:
    return copy.deepcopy(manifests(overlay)[KINDS.get(overlay, "RayJob")])


def cluster_of(manifest: Manifest) -> Manifest:
    place = CLUSTERS.get(manifest["kind"])
    return manifest["spec"][place] if place else manifest["spec"]


def pods(manifest: Manifest) -> Iterator[Manifest]:
    cluster = cluster_of(manifest)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        yield group["template"]["spec"]


def group_of(manifest: Manifest, name: str) -> Manifest:
    return next(group for group in cluster_of(manifest)["workerGroupSpecs"] if group["groupName"] == name)


def refused(manifest: Manifest) -> bool:
    return not jsonschema.Draft202012Validator(SCHEMA).is_valid(manifest)


def test_all_files_are_yaml_and_every_overlay_is_tested() -> None:
    files = sorted(FOLDER.rglob("*.yaml"))
    assert len(files) >= 10
    for path in files:
        assert yaml.safe_load(path.read_text()), path
    assert sorted(path.name for path in (FOLDER / "overlays").iterdir()) == sorted(OVERLAYS)


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_what_kuberay_takes(overlay: str) -> None:
    found = manifests(overlay)
    assert set(found) == {"ServiceAccount", "ConfigMap", KINDS.get(overlay, "RayJob")}
    jsonschema.validate(ray_manifest(overlay), SCHEMA, jsonschema.Draft202012Validator)
    cluster = cluster_of(ray_manifest(overlay))
    version = re.search(r"^ray==(\S+)", (ROOT / "cluster" / "requirements.lock").read_text(), re.MULTILINE)
    assert version is not None
    assert cluster["rayVersion"] == version[1]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"


def drop_head(manifest: Manifest) -> None:
    del cluster_of(manifest)["headGroupSpec"]


def misspell_group(manifest: Manifest) -> None:
    group = cluster_of(manifest)["workerGroupSpecs"][0]
    group["maxReplica"] = group.pop("maxReplicas")


def misspell_cluster(manifest: Manifest) -> None:
    cluster_of(manifest)["enableInTreeAutoscaler"] = True


def misspell_autoscaler(manifest: Manifest) -> None:
    cluster_of(manifest)["autoscalerOptions"]["idleTimeout"] = 60


def misspell_head(manifest: Manifest) -> None:
    cluster_of(manifest)["headGroupSpec"]["rayStartParameters"] = {}


def misspell_job(manifest: Manifest) -> None:
    manifest["spec"]["entryPoint"] = manifest["spec"]["entrypoint"]


def other_mode(manifest: Manifest) -> None:
    manifest["spec"]["submissionMode"] = "Sidecar"


def other_upscaling(manifest: Manifest) -> None:
    cluster_of(manifest)["autoscalerOptions"]["upscalingMode"] = "Fast"


def number_as_parameter(manifest: Manifest) -> None:
    cluster_of(manifest)["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def no_version(manifest: Manifest) -> None:
    del cluster_of(manifest)["rayVersion"]


def restart(manifest: Manifest) -> None:
    next(pods(manifest))["restartPolicy"] = "Always"


def no_shutdown(manifest: Manifest) -> None:
    del manifest["spec"]["shutdownAfterJobFinishes"]


def submitter(manifest: Manifest) -> None:
    manifest["spec"]["submissionMode"] = "SidecarMode"


def no_image(manifest: Manifest) -> None:
    del next(pods(manifest))["containers"][0]["image"]


@needs_kustomize
@pytest.mark.parametrize(
    "break_it",
    [drop_head, misspell_group, misspell_cluster, misspell_autoscaler, misspell_head, misspell_job, other_mode,
     other_upscaling, number_as_parameter, no_version, restart, no_shutdown, submitter, no_image],
)  # fmt: skip
def test_the_schema_refuses_what_kuberay_refuses(break_it: Callable[[Manifest], None]) -> None:
    manifest = ray_manifest("train-gpu")
    assert not refused(manifest)
    break_it(manifest)
    assert refused(manifest)


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods(overlay: str) -> None:
    manifest = ray_manifest(overlay)
    assert cluster_of(manifest)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    settings_map = {"configMapRef": {"name": manifests(overlay)["ConfigMap"]["metadata"]["name"]}}
    for pod in pods(manifest):
        assert pod["serviceAccountName"] == manifests(overlay)["ServiceAccount"]["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["terminationGracePeriodSeconds"] > 30  # Ray's own time to drain
        memory_volumes = [v["name"] for v in pod["volumes"] if v.get("emptyDir", {}).get("medium") == "Memory"]
        for container in pod["containers"]:
            mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert mounted["/dev/shm"] in memory_volumes
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"]
            assert resources["requests"].get("nvidia.com/gpu") == resources["limits"].get("nvidia.com/gpu")
            assert settings_map in container["envFrom"]
            # The operator keeps the token in a Secret of the cluster's name: ours must be another.
            secrets = [source["secretRef"] for source in container["envFrom"] if "secretRef" in source]
            assert secrets == [{"name": "msrcnn-credentials", "optional": True}]
            assert manifest["metadata"]["name"] != "msrcnn-credentials"
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert all("sizeLimit" in v["emptyDir"] for v in pod["volumes"] if v["name"] in memory_volumes)
    for group in cluster_of(manifest)["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        assert ("nvidia.com/gpu" in requests) == (group["groupName"] == "gpu")


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_place_sets_the_image(overlay: str, tmp_path: Path) -> None:
    kustomization = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())
    (image,) = kustomization["images"]
    wanted = f"{image['newName']}:{image['newTag']}"
    assert {c["image"] for pod in pods(ray_manifest(overlay)) for c in pod["containers"]} == {wanted}
    shutil.copytree(FOLDER, tmp_path / "kuberay")
    changed = tmp_path / "kuberay" / "base" / "kustomization.yaml"
    changed.write_text(changed.read_text().replace(image["newName"], "elsewhere.example.org/other"))
    program = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    done = subprocess.run(
        [*program, str(tmp_path / "kuberay" / "overlays" / overlay)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("image: ") == done.stdout.count("image: elsewhere.example.org/other:") >= 2


def settings(value: Any) -> Iterator[tuple[str, Any]]:
    """Every name with what stands under it, at any depth; an environment variable's name with the whole entry."""
    if isinstance(value, dict):
        if isinstance(value.get("name"), str) and ("value" in value or "valueFrom" in value):
            yield value["name"], value
        for name, content in value.items():
            yield name, content
            yield from settings(content)
    elif isinstance(value, list):
        for content in value:
            yield from settings(content)


def literal_secrets(manifest: Manifest) -> list[str]:
    """Names of secrets whose values stand in the manifest."""
    found = ["Secret"] if manifest["kind"] == "Secret" else []
    for name, content in settings(manifest):
        if SECRET.search(name) and name not in REFERENCES:
            found += [name] if isinstance(content, str) or "value" in content else []
    return found


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_stands_in_a_manifest(overlay: str) -> None:
    for manifest in manifests(overlay).values():
        assert literal_secrets(manifest) == []
        for _, content in settings(manifest):  # neither in a URL: https://user:password@host
            assert not (isinstance(content, str) and re.search(r"://[^/\s]*@", content))
    leaky = ray_manifest(overlay)
    container = next(pods(leaky))["containers"][0]
    container["env"] = [{"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}]
    assert literal_secrets(leaky) == ["AWS_SECRET_ACCESS_KEY"]
    reference = {"secretKeyRef": {"name": "msrcnn", "key": "AWS_SECRET_ACCESS_KEY"}}
    container["env"] = [{"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": reference}]
    assert literal_secrets(leaky) == []


def command_of(overlay: str) -> tuple[str, Any]:
    """The verb and the options of an overlay's entry point, as our own command line reads them."""
    program, verb, *arguments = shlex.split(ray_manifest(overlay)["spec"]["entrypoint"])
    assert program == "msrcnn"
    assert verb in VERBS
    return verb, parse(verb, arguments)


@needs_kustomize
@pytest.mark.parametrize(("overlay", "verb"), JOBS.items())
def test_entry_points_are_commands_of_ours(overlay: str, verb: str) -> None:
    spec = ray_manifest(overlay)["spec"]
    assert re.fullmatch(r"[\w./: -]+", spec["entrypoint"])  # KubeRay hands it to a shell as it is
    found, options = command_of(overlay)
    assert found == verb
    assert options.address is None  # Ray's jobs know their cluster
    places = [getattr(options, name, None) for name in ("shards", "validation", "run", "out", "model")]
    places = [place for place in places if isinstance(place, (str, Path))]
    assert len(places) >= 3
    assert all(str(place).startswith("s3://") for place in places)
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert "activeDeadlineSeconds" not in spec


@needs_kustomize
@pytest.mark.parametrize("overlay", JOBS)
def test_the_submitter_waits_for_nodes_and_is_confined_as_the_head(overlay: str) -> None:
    spec = ray_manifest(overlay)["spec"]
    assert spec["submissionMode"] == "K8sJobMode"  # the only one that follows the output and begins with all nodes
    assert spec["submitterConfig"]["backoffLimit"] >= 10  # of a pod that may be evicted in days of training
    pod, head = spec["submitterPodTemplate"]["spec"], next(pods(ray_manifest(overlay)))
    assert pod["restartPolicy"] == "Never"
    assert pod["securityContext"] == head["securityContext"]
    (container,) = pod["containers"]
    assert "command" not in container  # KubeRay's own
    for name in ("image", "securityContext"):
        assert container[name] == head["containers"][0][name]


@needs_kustomize
def test_the_cluster_has_what_the_commands_ask_for() -> None:
    """When a command begins all `replicas` are there: KubeRay waits for them."""
    _, train = command_of("train-gpu")
    gpu = group_of(ray_manifest("train-gpu"), "gpu")
    fewest, most = train.worker_range
    assert train.gpu
    assert fewest < most
    assert (fewest, fewest, most) == (gpu["minReplicas"], gpu["replicas"], gpu["maxReplicas"])
    _, sweep = command_of("sweep")
    gpu = group_of(ray_manifest("sweep"), "gpu")
    assert sweep.gpu
    assert sweep.worker_range[1] * sweep.concurrent == gpu["replicas"] == gpu["maxReplicas"]
    _, evaluate = command_of("evaluate-cpu")
    manifest = ray_manifest("evaluate-cpu")
    assert not evaluate.gpu
    assert [group["groupName"] for group in cluster_of(manifest)["workerGroupSpecs"]] == ["cpu"]
    cpu = group_of(manifest, "cpu")
    assert cpu["minReplicas"] < cpu["replicas"] == cpu["maxReplicas"]
    assert "nvidia" not in render("evaluate-cpu")


@needs_kustomize
def test_the_service_is_ours_and_has_its_nodes() -> None:
    """Its configuration names our application with arguments that we take; each replica has a node of its own."""
    from pydantic import TypeAdapter

    spec = ray_manifest("serve-gpu")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    (served,) = config["applications"]
    assert served.keys() == {"name", "route_prefix", "import_path", "args"}
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}  # where KubeRay's services lead
    module, _, function = served["import_path"].partition(":")
    assert f"\ndef {function}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert {*served["args"]} <= {field.name for field in fields(ServiceOptions)}
    options = TypeAdapter(ServiceOptions).validate_python(served["args"])
    assert str(options.model).startswith("s3://")
    gpu = group_of(ray_manifest("serve-gpu"), "gpu")
    assert options.gpu
    assert worker_range(options.replicas) == (gpu["minReplicas"], gpu["maxReplicas"])
    assert [group["groupName"] for group in cluster_of(ray_manifest("serve-gpu"))["workerGroupSpecs"]] == ["gpu"]
    misspelt = ray_manifest("serve-gpu")
    misspelt["spec"]["serveConfig"] = misspelt["spec"].pop("serveConfigV2")
    assert refused(misspelt)
