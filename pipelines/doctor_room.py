"""Whether the workers of a training have room in the cluster now, counted by node."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from cluster.probes import Node, Probes
from cluster.room import fitting
from pipelines import node_facts
from pipelines.doctor_options import DoctorConfig
from pipelines.doctor_report import SHOWN, Report
from pipelines.reading import READER_CPUS, READERS
from pipelines.text_tables import counted


def check_room(report: Report, probes: Probes, config: DoctorConfig) -> None:
    """The fewest workers fit beside their readers into what nobody uses at the moment."""
    answers = probes.ask(node_facts.free_resources, nodes=probes.nodes[:1])
    report.unanswered("room", answers)
    for free in answers.values.values():
        have = {node: free.get(node.id, {}) for node in probes.nodes}
        judge_room(report, config, have, largest())


def judge_room(
    report: Report, config: DoctorConfig, free: Mapping[Node, Mapping[str, float]], limits: Mapping[str, float]
) -> None:
    """Compares what is wanted with what there is.

    Args:
        free: what each node has to give now.
        limits: what an autoscaler may enlarge the cluster to, in all; empty without one.
    """
    fewest, most = config.worker_range
    readers = (READERS, READER_CPUS)
    now = fitting([*free.values()], config.worker, *readers)
    idle = fitting([node.resources for node in free], config.worker, *readers)
    each = " and ".join(f"{need:g} {name}" for name, need in config.worker.items())
    wanted = f"--workers {config.workers}"
    if now >= most:
        report.ok("room", f"{counted(now, 'worker')} of {each} fit beside their readers, {wanted}")
    elif fewest <= now < min(most, fitting([*free.values()], config.worker)):  # Ray Train takes all that nodes hold
        report.fail("room", f"more workers of {each} fit than beside their readers, {wanted}: these would never read",
                    f"lower --cpus by {READERS * READER_CPUS:g}, or the second of --workers")  # fmt: skip
    elif now >= fewest:
        report.ok("room", f"{counted(now, 'worker')} of {each} fit now, {wanted}: training begins with those")
    else:
        found = f"{counted(max(now, 0), 'worker')} of {each} fit beside their readers now, {wanted}{_least(free)}"
        if idle >= fewest:
            report.fail("room", found, "others use the rest: wait for them, or ask for fewer --workers or --cpus")
        else:
            report.fail("room", found, f"with nobody else there, {max(idle, 0)} would fit: ask for fewer --workers or "
                        f"--cpus, or add nodes{_growth(limits)}")  # fmt: skip


def largest() -> dict[str, float]:
    """What an autoscaler may enlarge the cluster to, in all; empty where there is none or it does not tell."""
    try:
        found = ray._private.state.state.get_max_resources_from_cluster_config()
    except Exception:  # Ray's own, and not for clients behind ray://
        return {}
    return {name: value for name, value in (found or {}).items() if name in ("CPU", "GPU")}


def _growth(limits: Mapping[str, float]) -> str:
    if not limits:
        return ""
    shown = ", ".join(f"{value:g} {name}" for name, value in limits.items())
    return f" (the autoscaler may go to {shown} in all, but adds nodes only for what is already submitted)"


def _least(free: Mapping[Node, Mapping[str, float]]) -> str:
    """What the nodes have, for the first few."""
    parts = [
        f"{node.name} has " + ", ".join(f"{have.get(name, 0):g} of {node.resources[name]:g} {name} free"
                                        for name in ("CPU", "GPU") if node.resources.get(name))
        for node, have in [*free.items()][:SHOWN] if node.resources.get("CPU")
    ]  # fmt: skip
    more = ", ..." if len(free) > SHOWN else ""
    return f" ({'; '.join(parts)}{more})" if parts else ""
