"""Lines that say how far a stage is."""

from pipelines.progress import Progress


def test_the_rate_leaves_out_the_start_and_lines_are_not_too_many():
    now, lines = [0.0], []
    progress = Progress(100, lines.append, lambda: now[0])
    for time, images in ((30, 10), (31, 10), (36, 20), (37, 20), (38, 40)):
        now[0] = time
        progress.add(images)
    assert lines == [
        "10/100 images, 0.3 images/s, 4 min 30 s left",  # nothing better is known yet
        "40/100 images, 5.0 images/s, 12 s left",  # 30 images in the 6 s since the first result
        "100/100 images, 11.2 images/s, 0 s left",
    ]


def test_a_single_result_counts_from_the_beginning():
    now, lines = [0.0], []
    progress = Progress(8, lines.append, lambda: now[0])
    now[0] = 4
    progress.add(8)
    assert lines == ["8/8 images, 2.0 images/s, 0 s left"]


def test_results_that_come_at_once_count_from_the_beginning():
    now, lines = [0.0], []
    progress = Progress(8, lines.append, lambda: now[0])
    now[0] = 4
    progress.add(3)
    progress.add(5)
    assert lines == ["8/8 images, 2.0 images/s, 0 s left"]
