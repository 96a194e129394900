"""The processes whose memory `scoring` measures, without what Ray adds to a worker: run by it, one a figure.

    python -m benchmarks.scoring_memory import | part FILE | join FILE

FILE is a pickle: the arguments of `score_part`, or a list of partial scores. Prints the peak in bytes.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peak import peak_memory
from pipelines.scoring import join, score_part, summarise


def peak_of(what: str, value: Any) -> int:
    """The peak of a process that does `what` with the value."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "value"
        path.write_bytes(pickle.dumps(value))
        command = [sys.executable, "-m", "benchmarks.scoring_memory", what, str(path)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    what, path = sys.argv[1:]
    value = pickle.loads(Path(path).read_bytes())
    if what == "part":  # what a task does
        score_part(*value)
    elif what == "join":  # what the last joining task and the driver do; further draws take no more
        summarise("repeated", join(*value), 2, 0)
    print(peak_memory())


if __name__ == "__main__":
    main()
