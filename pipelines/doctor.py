"""`msrcnn doctor`: what a long job would stumble over, found in a minute.

A process on every node, the head included, answers questions; a node that cannot answer is a line and no wait without
end. It runs on a laptop, beside a cluster that `--address` names, or as a submitted Ray job on the head.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.probes import probing
from cluster.session import connect
from pipelines.doctor_files import check_shards, check_storage
from pipelines.doctor_nodes import check_cluster, check_facts, check_gpus, check_network
from pipelines.doctor_options import DoctorConfig
from pipelines.doctor_report import Report
from pipelines.doctor_room import check_room
from pipelines.doctor_tracking import check_tracking


def doctor_exit(config: DoctorConfig) -> int:
    """`msrcnn doctor`: 1 if a check failed."""
    return int(bool(doctor(config).failed))


def doctor(config: DoctorConfig, log: Callable[[str], None] = print) -> Report:
    """Checks the cluster and prints what it finds.

    Raises:
        InputError: no cluster answers at the address.
    """
    report = Report(log)
    with connect(config.address), probing() as probes:
        check_cluster(report, probes)
        check_facts(report, probes)
        check_network(report, probes)
        if config.gpu:
            check_gpus(report, probes)
        check_room(report, probes, config)
        check_tracking(report, probes, config.tracking)
        for place in config.storage:
            check_storage(report, probes, place)
        for place in config.shards:
            check_shards(report, probes, place)
    report.close()
    return report
