"""A worker that waits too long says for what, and says it again after twice the time."""

import time

from pipelines.waiting import Watch


class Notes:
    rank = 3

    def __init__(self) -> None:
        self.notes: list[str] = []

    def put(self, kind: str, content: str) -> None:
        assert kind == "note"
        self.notes.append(content)


def test_long_waits_are_told_short_ones_not():
    post = Notes()
    with Watch(post, patience=0.2) as watch:
        for _ in range(20):
            with watch.on("the images of step 1"):
                time.sleep(0.02)
        assert post.notes == []
        with watch.on("the checkpoint"), watch.on("the images of step 2"):
            time.sleep(0.9)  # told after 0.2 and 0.4, next after 0.8 or a look later
        time.sleep(0.5)  # working, not waiting
    assert post.notes[:2] == ["worker 3 has waited 0 s for the images of step 2"] * 2
    assert len(post.notes) <= 3
