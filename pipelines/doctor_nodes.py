"""Checks of the nodes themselves: versions, our code, clocks, memory for objects, disks, network, GPUs.

Each takes the report and a process on every node, and asks at most one question of all nodes at a time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cluster import network
from cluster.probes import Node, Probes
from pipelines import node_facts
from pipelines.doctor_report import Report, all_of, listed
from pipelines.text_tables import counted

CLOCK_SECONDS = 60.0
"""How far a node's clock may be off. Object stores refuse requests that are a quarter of an hour old or new."""
FULL = 0.95
"""Ray writes nothing more to a disk that is fuller than that."""
GPU_SECONDS = 150.0
SAME = (
    "install what the driver has there (the same image, or requirements.lock), then start Ray on that node again: "
    "running processes keep what they have loaded"
)


def check_cluster(report: Report, probes: Probes) -> None:
    """Names the nodes and what they offer."""
    for node in probes.nodes:
        what = f"{node.name} ({node.address}{', head' if node.head else ''})"
        report.ok("node", f"{what}: {resources_of(node.resources)}")


def resources_of(resources: Mapping[str, float]) -> str:
    """CPUs, GPUs and bytes in a few words."""
    parts = [f"{resources.get('CPU', 0):g} CPU"]
    if resources.get("GPU"):
        parts.append(f"{resources['GPU']:g} GPU")
    for name, shown in (("memory", "memory"), ("object_store_memory", "object store")):
        parts.append(f"{resources.get(name, 0) / 1e9:.1f} GB {shown}")
    return ", ".join(parts)


def check_facts(report: Report, probes: Probes) -> None:
    """Asks each node what it knows about itself and compares it with the driver and with what Ray wants."""
    began = time.time()
    answers = probes.ask(node_facts.facts)
    ended = time.time()
    report.unanswered("node", answers)
    if not answers.values:
        return
    check_versions(report, answers.values, node_facts.versions())
    check_code(report, answers.values, node_facts.code())
    check_clocks(report, answers.values, began, ended)
    check_object_stores(report, answers.values)
    check_disks(report, answers.values)


def check_versions(report: Report, found: Mapping[Node, Mapping[str, Any]], ours: Mapping[str, str]) -> None:
    """Python and packages are the driver's on every node."""
    problems = {}
    for node, facts in found.items():
        theirs = facts["versions"]
        names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
        if names:
            problems[node] = "; ".join(
                f"{name} {theirs.get(name, 'is missing')}, the driver has {ours.get(name, 'none')}" for name in names
            )
    report.by_node("versions", problems, SAME)
    if not problems:
        shown = ", ".join(f"{name} {version}" for name, version in ours.items())
        report.ok("versions", f"as the driver's {all_of([*found])}: {shown}")


def check_code(report: Report, found: Mapping[Node, Mapping[str, Any]], ours: Mapping[str, str]) -> None:
    """Our own sources are the driver's on every node."""
    problems = {}
    for node, facts in found.items():
        theirs = facts["code"]
        differing = [name for name in sorted({**ours, **theirs}) if theirs.get(name) != ours.get(name)]
        if differing:
            problems[node] = f"{facts['root']} is not the driver's code: {listed(differing)}"
    report.by_node("code", problems, "install the same msrcnn there, or submit the job with the tree as working_dir")
    if not problems:
        report.ok("code", f"{counted(len(ours), 'source file')} as the driver's {all_of([*found])}")


def check_clocks(report: Report, found: Mapping[Node, Mapping[str, Any]], began: float, ended: float) -> None:
    """Each clock stood between the driver's before asking and after the answers, or not far from it."""
    off = {node: max(began - facts["clock"], facts["clock"] - ended, 0.0) for node, facts in found.items()}
    problems = {node: f"clock {seconds:.0f} s off the driver's" for node, seconds in off.items()
                if seconds > CLOCK_SECONDS}  # fmt: skip
    report.by_node("clocks", problems, "set the clock by NTP (chrony, systemd-timesyncd): object stores and tokens "
                                       "refuse requests of another time")  # fmt: skip
    if not problems:
        report.ok("clocks", f"within {ended - began + max(off.values()):.0f} s of the driver's")


def check_object_stores(report: Report, found: Mapping[Node, Mapping[str, Any]]) -> None:
    """Ray keeps objects in shared memory, not on a disk, which it does where /dev/shm is too small."""
    slow = {
        node: f"Ray keeps its {_gb(node.resources.get('object_store_memory', 0))} of objects in {facts['objects']}, on "
              f"a disk: {node_facts.SHARED_MEMORY} has {_gb((facts['shared_memory'] or (0,))[0])}"
        for node, facts in found.items() if facts["objects"] not in (None, node_facts.SHARED_MEMORY)
    }  # fmt: skip
    for node, problem in slow.items():
        report.warn("objects", f"{node.name}: {problem}", "give the container a larger /dev/shm (docker --shm-size; "
                    "Kubernetes: an emptyDir of medium Memory) or start Ray with a smaller "
                    "--object-store-memory")  # fmt: skip
    if not slow:
        report.ok("objects", f"in shared memory {all_of([*found])}")


def check_disks(report: Report, found: Mapping[Node, Mapping[str, Any]]) -> None:
    """Ray's own folder is on a disk with room: it spills objects there when memory is full."""
    problems, free = {}, {}
    for node, facts in found.items():
        if facts["disk"] is None:
            problems[node] = f"{facts['session']}, Ray's folder, is gone"
            continue
        total, free[node] = facts["disk"]
        if free[node] < (1 - FULL) * total:
            problems[node] = (f"the disk of {facts['session']} is {1 - free[node] / total:.0%} full "
                              f"({_gb(free[node])} free)")  # fmt: skip
    report.by_node("disks", problems, f"free some: over {FULL:.0%} Ray stores no objects on it; or start Ray there "
                                      "with a --temp-dir on a larger disk")  # fmt: skip
    if not problems:
        least = min(free, key=lambda node: free[node])
        report.ok("disks", f"at least {_gb(free[least])} free where Ray spills objects ({least.name})")


def check_network(report: Report, probes: Probes) -> None:
    """Every node connects to every other on ports chosen by the system, as training workers do."""
    if len(probes.nodes) < 2:
        return
    listening = probes.ask(network.listen, lambda node: (node.address,))
    report.unanswered("network", listening)
    places = {node: (node.address, port) for node, port in listening.values.items()}
    answers = probes.ask(
        network.reach, lambda me: ({node.name: place for node, place in places.items() if node != me},)
    )
    report.unanswered("network", answers)
    problems = {}
    for node, failed in answers.values.items():
        reasons = {reason: [name for name in failed if failed[name] == reason] for reason in failed.values()}
        if failed:
            problems[node] = "; ".join(f"cannot connect to {listed(names)} ({reason})"
                                       for reason, names in reasons.items())  # fmt: skip
    report.by_node("network", problems, "open all TCP ports from 1024 on between the nodes (security group, "
                   "NetworkPolicy, firewall): workers choose theirs freely")  # fmt: skip
    if not problems and not listening.failures and not answers.failures:
        report.ok("network", f"each of {len(places)} nodes reaches every other")


def check_gpus(report: Report, probes: Probes) -> None:
    """On each node to which Ray ascribes GPUs torch sees as many."""
    having = [node for node in probes.nodes if node.resources.get("GPU")]
    if not having:
        report.fail("GPUs", f"Ray has none {all_of(probes.nodes)}", "start Ray where the NVIDIA driver is seen "
                    "(nvidia-smi; in a container: --gpus all or nvidia.com/gpu), or give --num-gpus to ray start, or "
                    "leave out --gpu")  # fmt: skip
        return
    answers = probes.ask(node_facts.gpus, nodes=having, seconds=GPU_SECONDS)
    report.unanswered("GPUs", answers)
    problems = {}
    for node, (number, about) in answers.values.items():
        if number < 0:
            problems[node] = f"torch cannot look for GPUs ({about})"
        elif number != node.resources["GPU"]:
            built = "this torch is built without CUDA" if about == "None" else f"torch for CUDA {about}"
            problems[node] = f"Ray offers {node.resources['GPU']:g} GPU, torch sees {number} ({built})"
    report.by_node("GPUs", problems, "install a torch for the node's NVIDIA driver, and let ray start count the GPUs "
                   "itself (no --num-gpus)")  # fmt: skip
    if not problems and not answers.failures:
        total = sum(node.resources["GPU"] for node in having)
        report.ok("GPUs", f"{total:g} on {counted(len(having), 'node')}, and torch sees them")


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
