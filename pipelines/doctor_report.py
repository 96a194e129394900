"""What `msrcnn doctor` found: a line a check, and what to do where one failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.probes import Answers, Node
from pipelines.text_tables import counted

OK, WARN, FAIL = "ok", "warn", "FAIL"
SHOWN = 3
"""Names of a list that a line shows."""
NO_ANSWER = (
    "look into the node's own logs, /tmp/ray/session_latest/logs there (raylet.out, python-core-worker-*): its workers "
    "cannot start (another Ray or Python, a package that is missing, a full disk) or the network loses it; then start "
    "Ray on it again, or take it out of the cluster"
)
NO_CODE = "install the same msrcnn on the node, or submit the job with the source tree as its working_dir"


@dataclass(frozen=True)
class Finding:
    """One line."""

    state: str
    subject: str
    found: str
    remedy: str = ""


class Report:
    """Prints findings as they come.

    Args:
        log: takes a line.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self.findings: list[Finding] = []

    def ok(self, subject: str, found: str) -> None:
        """A check that passed."""
        self._add(Finding(OK, subject, found))

    def warn(self, subject: str, found: str, remedy: str) -> None:
        """What works, but will hurt."""
        self._add(Finding(WARN, subject, found, remedy))

    def fail(self, subject: str, found: str, remedy: str) -> None:
        """A check that failed, and what to do."""
        self._add(Finding(FAIL, subject, found, remedy))

    def refuse(self, subject: str, message: str) -> None:
        """A check that an InputError ended: its message says after the last semicolon what to do."""
        found, _, remedy = message.rpartition("; ")
        self.fail(subject, found or message, remedy if found else "")

    def unanswered(self, subject: str, answers: Answers) -> None:
        """Nodes that did not answer."""
        for reason, nodes in grouped(answers.failures).items():
            lacking = "No module named" in reason or "Can't get attribute" in reason or "has no attribute" in reason
            self.fail(subject, f"{listed(nodes)}: {reason}", NO_CODE if lacking else NO_ANSWER)

    def by_node(self, subject: str, problems: Mapping[Node, str], remedy: str) -> None:
        """Fails with a line for each different problem, and the nodes that have it."""
        for problem, nodes in grouped(problems).items():
            self.fail(subject, f"{listed(nodes)}: {problem}", remedy)

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return sum(finding.state == FAIL for finding in self.findings)

    def close(self) -> None:
        """Prints the sum."""
        warnings = sum(finding.state == WARN for finding in self.findings)
        warned = f", {counted(warnings, 'warning')}" if warnings else ""
        if self.failed:
            self._log(f"{counted(self.failed, 'failure')} in {counted(len(self.findings), 'check')}{warned}")
        else:
            self._log(f"all is well: {counted(len(self.findings), 'check')}{warned}")

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)
        self._log(f"{finding.state:<4}  {finding.subject:<9} {finding.found}")
        if finding.remedy:
            self._log(f"{'':<4}  {'':<9} -> {finding.remedy}")


def grouped(problems: Mapping[Node, str]) -> dict[str, list[Node]]:
    """Nodes by what is wrong with them."""
    groups: dict[str, list[Node]] = {}
    for node, problem in problems.items():
        groups.setdefault(problem, []).append(node)
    return groups


def listed(items: Iterable[Node | str]) -> str:
    """The first few names and how many more there are."""
    names = [item if isinstance(item, str) else item.name for item in items]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def all_of(nodes: Sequence[Node]) -> str:
    """How many nodes agreed."""
    return f"on all {len(nodes)} nodes" if len(nodes) > 1 else "on the node"
