"""Two evaluations compared: numbers of the summaries, intervals of the rows, seeds, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from msrcnn.errors import InputError
from msrcnn.metrics.maskiou import true_maskiou
from msrcnn.metrics.matches import Matches
from msrcnn.metrics.resampling import image_draws
from pipelines.compare import compare
from pipelines.compare_options import CompareConfig
from pipelines.verbs import parse
from tests.reports import CATEGORIES, write_data, write_evaluation, write_training

DRAWS = 60
LISTED = [(i, name) for i, (_, name) in enumerate(CATEGORIES, start=1)]


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_scene):
    """Twelve images and three detectors' evaluations of them; the second and the third as of two seeds."""
    folder = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(4)
    scenes = [make_scene(i, rng, instances=6, detections=14, classes=3) for i in range(1, 13)]
    shards = write_data(folder / "shards", scenes)
    detectors = []
    for _ in range(3):
        scores = rng.random((len(scenes), 2, 14), np.float32)  # no equal ones, whose order storing changes
        found = [replace(s.detections, class_scores=c, maskious=m) for s, (c, m) in zip(scenes, scores, strict=True)]
        detectors.append([replace(s, detections=d) for s, d in zip(scenes, found, strict=True)])
    summaries = [write_evaluation(folder / str(i), shards, of, bootstrap=0, model_sha=str(i) * 64)
                 for i, of in enumerate(detectors)]  # fmt: skip
    return folder, detectors, summaries


def _numbers(found):
    return {(n.of, n.metric): n for n in found.numbers}


def _draws(scenes):
    """Mask AP by mask score on each draw."""
    matches = Matches(LISTED)
    matches.update([s.truth for s in scenes], [s.detections for s in scenes])
    return matches.ranked("mask").aps(image_draws(len(scenes), DRAWS, 0))


def test_differences_are_those_of_the_summaries_and_intervals_those_of_the_rows(made, tmp_path):
    folder, detectors, (one, two, _) = made
    lines = []
    found = compare(CompareConfig(folder / "0", folder / "1", out=tmp_path / "c.json", bootstrap=DRAWS), lines.append)
    numbers = _numbers(found)
    for of in ("box", "mask_by_class", "mask_by_mask"):
        for metric in ("AP", "AP50", "AP75", "APs", "APm"):
            number = numbers[of, metric]
            assert (number.a, number.b) == (one["ap"][of][metric], two["ap"][of][metric])
    assert numbers["gain", "AP"].b - numbers["gain", "AP"].a == pytest.approx(two["ap"]["gain"] - one["ap"]["gain"])
    less = _draws(detectors[1]) - _draws(detectors[0])
    for column, metric in enumerate(("AP", "AP50", "AP75")):
        number = numbers["mask_by_mask", metric]
        assert (number.low, number.high) == pytest.approx(tuple(np.percentile(less[:, column], [2.5, 97.5])))
        assert number.low < number.b - number.a < number.high
    text, number = "\n".join(lines), numbers["mask_by_mask", "AP"]
    cells = f"{100 * (number.b - number.a):+.2f} │ {100 * number.low:+.2f} to {100 * number.high:+.2f} │"
    assert cells in re.sub(" +", " ", text)
    assert "A and B: one training" in text
    stored = json.loads((tmp_path / "c.json").read_text())
    assert [evaluation["model_sha256"][0] for evaluation in stored["a"] + stored["b"]] == ["0", "1"]
    assert stored["numbers"][0] == {"of": "mask_by_mask", "metric": "AP"} | {
        name: getattr(number, name) for name in ("a", "b", "low", "high")
    }


def test_the_correlation_is_that_of_the_drawn_detections(made):
    folder, detectors, summaries = made
    number = _numbers(compare(CompareConfig(folder / "0", folder / "1", bootstrap=DRAWS)))["maskiou", "correlation"]
    assert number.a == summaries[0]["maskiou"]["all_detections"]["maskiou_pearson"]
    of_sides = []
    for scenes in detectors[:2]:
        pairs = [np.stack([s.detections.maskious, true_maskiou(s.truth, s.detections)]) for s in scenes]
        of_sides.append([np.corrcoef(np.concatenate([pairs[i] for i in np.repeat(np.arange(12), counts)], 1))[0, 1]
                         for counts in image_draws(12, DRAWS, 0)])  # fmt: skip
    expected = np.percentile(np.subtract(of_sides[1], of_sides[0]), [2.5, 97.5])
    assert (number.low, number.high) == pytest.approx(tuple(expected))


def test_an_evaluation_does_not_differ_from_itself(made):
    folder, _, _ = made
    found = compare(CompareConfig(folder / "0", folder / "0", bootstrap=DRAWS))
    ends = [(n.low, n.high) for n in (*found.numbers, *found.categories)]
    assert {end for of in ends for end in of if not np.isnan(end)} == {0.0}


def test_several_seeds_are_a_mean_with_a_wider_interval(made):
    folder, _, (_, two, three) = made
    found = compare(CompareConfig(folder / "0", folder / "1", more_b=(folder / "2",), bootstrap=DRAWS))
    number = _numbers(found)["mask_by_mask", "AP"]
    aps = [s["ap"]["mask_by_mask"]["AP"] for s in (two, three)]
    assert number.b == pytest.approx(np.mean(aps))
    alone = _numbers(compare(CompareConfig(folder / "0", folder / "1", bootstrap=DRAWS)))["mask_by_mask", "AP"]
    assert number.high - number.low > alone.high - alone.low
    assert number.high - number.low > 2 * 8 * np.std(aps, ddof=1) / 2**0.5  # Student's t of one degree: 12.7


def test_categories_in_few_images_have_no_interval(made, tmp_path, make_scene):
    """The third category is in every image, the second in none but three."""
    folder, _, _ = made
    whole = compare(CompareConfig(folder / "0", folder / "1", bootstrap=DRAWS)).categories
    assert [c.name for c in whole] == [name for _, name in LISTED]
    assert not any(np.isnan(c.low) for c in whole)
    rng = np.random.default_rng(1)
    scenes = [make_scene(i, rng, 6, 14, 3 if i < 4 else 1) for i in range(1, 13)]
    shards = write_data(tmp_path / "shards", scenes)
    for name, sha in (("a", "0"), ("b", "1")):
        write_evaluation(tmp_path / name, shards, scenes, bootstrap=0, model_sha=sha * 64)
    few = compare(CompareConfig(tmp_path / "a", tmp_path / "b", bootstrap=DRAWS)).categories
    assert [np.isnan(c.low) for c in few] == [False, True, True]


def test_two_settings_of_one_model_are_told_apart(made, tmp_path):
    """On two sides they are compared; on one, other settings are no other seed."""
    folder, _, _ = made
    shutil.copytree(folder / "0", tmp_path / "soft")
    stored = tmp_path / "soft" / "summary.json"
    inference = {"selection": {"method": "linear"}, "precision": "bfloat16"}
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"inference": inference}))
    lines, out = [], tmp_path / "c.json"
    compare(CompareConfig(folder / "0", tmp_path / "soft", out=out, bootstrap=2), lines.append)
    assert {"A: 0", "B: soft (selection.method=linear, precision=bfloat16)"} <= set(lines)
    written = json.loads(out.read_text())
    assert [evaluation["inference"] for evaluation in written["a"] + written["b"]] == [{}, inference]
    with pytest.raises(InputError, match=r"soft: of the same model as .*0, so no other seed"):
        compare(CompareConfig(folder / "1", folder / "0", more_b=(tmp_path / "soft",)))


def test_of_one_image_nothing_is_certain(tmp_path, make_scene):
    """All draws of one image are the same: their ends would be the difference itself."""
    rng = np.random.default_rng(2)
    scene = make_scene(1, rng, instances=6, detections=14, classes=3)
    shards, lines = write_data(tmp_path / "shards", [scene]), []
    for name in ("a", "b"):
        of = replace(scene.detections, maskious=rng.random(14, np.float32))
        write_evaluation(tmp_path / name, shards, [replace(scene, detections=of)], bootstrap=0, model_sha=name * 64)
    found = compare(CompareConfig(tmp_path / "a", tmp_path / "b", bootstrap=DRAWS), lines.append)
    assert _numbers(found)["maskiou", "correlation"].a != _numbers(found)["maskiou", "correlation"].b
    assert np.isnan([(n.low, n.high) for n in (*found.numbers, *found.categories)]).all()
    assert not any("*" in line.split("│")[-2] for line in "\n".join(lines).splitlines() if "│" in line)


def test_what_cannot_be_compared_is_refused(made, tmp_path, make_scene):
    folder, _, _ = made
    other = [make_scene(i, np.random.default_rng(i), 5, 9, 3) for i in range(50, 54)]
    elsewhere = tmp_path / "elsewhere"
    write_evaluation(elsewhere, write_data(tmp_path / "other-shards", other), other, bootstrap=0)
    training = write_training(tmp_path / "run")
    first, second = folder / "0", folder / "1"
    for given, message in (
        ((first, elsewhere), "elsewhere: evaluated on other shards than .*0 .*evaluate both on the same"),
        ((first, training), "run: a training without an evaluation"),
        ((first, tmp_path / "nothing"), "nothing: no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            compare(CompareConfig(*given))
    with pytest.raises(InputError, match=r"of the same model as .*1, so no other seed"):
        compare(CompareConfig(first, second, more_b=(second,)))
    with pytest.raises(InputError, match=r"other shards than .*0 was evaluated on"):
        compare(CompareConfig(first, second, shards=tmp_path / "other-shards"))
    shutil.copytree(first, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "detections")
    with pytest.raises(InputError, match="bare"):
        compare(CompareConfig(tmp_path / "bare", second))
    numbers = tmp_path / "bare" / "summary.json"
    moved = json.loads(numbers.read_text()) | {"rows": str(first), "shards_folder": str(tmp_path / "gone")}
    numbers.write_text(json.dumps(moved))
    with pytest.raises(InputError, match=r"gone: no manifest\.json; --shards says where the shards are now"):
        compare(CompareConfig(tmp_path / "bare", second))
    unwritable = CompareConfig(first, second, out=numbers / "c.json", bootstrap=2)
    with pytest.raises(InputError, match=r"c\.json: cannot be written .*; choose another --out"):
        compare(unwritable)
    found = compare(CompareConfig(tmp_path / "bare", first, shards=folder / "shards", bootstrap=2))  # of those rows
    assert {(n.low, n.high) for n in found.numbers if n.metric == "AP"} == {(0, 0)}


def test_both_sides_may_have_several():
    config = parse("compare", ["a", "b", "--more-a", "c", "d", "--more-b", "e", "--out", "x.json"])
    assert [str(place) for place in (config.a, config.b, *config.more_a, *config.more_b)] == ["a", "b", "c", "d", "e"]
