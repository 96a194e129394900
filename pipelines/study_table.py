"""A study's results as Markdown. Every number in it comes from `results.json`; `-` is what is not defined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.study_measures import CLASS, FROZEN, ORACLE, PAPER, ranking
from pipelines.study_plan import ABLATIONS
from pipelines.text_tables import NONE, markdown_table

Results = Mapping[str, Any]
NAMES = {PAPER: "the paper's head, trained with the trunk", FROZEN: "the paper's head, trained on the finished trunk"}
"""Of heads in words, where a name is not enough."""
PAPER_CLOSES = 0.42
"""Of the oracle gap, by the paper's ResNet-18 FPN on COCO: from 27.7 to 29.3, the oracle 31.5 (Tables 1 and 7)."""


def markdown(results: Results) -> str:
    """All tables of a study."""
    parts = (_about, _rankings, _claims, _boxes, _agreements, _ablations, _limits, _screening)
    return "\n".join(line for part in parts for line in part(results)).rstrip() + "\n"


def shown(value: float | None, form: str = ".2f") -> str:
    """A number, or that it is not defined."""
    return NONE if value is None else format(value, form)


def interval(of: Mapping[str, float | None], sign: bool = True) -> str:
    """A mean with its 95% interval; with signs where it is of percentage points."""
    mean, low, high = (shown(of[name], "+.2f" if sign else ".2f") for name in ("mean", "low", "high"))
    return mean if of["mean"] is None else f"{mean} ({low} to {high})"


def has_gap(rankings: Mapping[str, Any]) -> bool:
    """Whether the oracle certainly gains over the class score; else no head can close a share of it."""
    low = rankings[ORACLE]["gain"]["low"]
    return low is not None and low > 0


def closes(rankings: Mapping[str, Any], name: str) -> str:
    """The share of the oracle gap that a ranking closes."""
    return interval(rankings[name]["closed"], sign=False) if has_gap(rankings) else NONE


def spread(of: Mapping[str, float | None]) -> str:
    """A mean with its deviation over seeds, of which there may be one."""
    return shown(of["mean"]) + ("" if of["deviation"] is None else f" ± {shown(of['deviation'])}")


def named(name: str) -> str:
    """A ranking in words."""
    head, _, power = name.partition("^")
    words = NAMES.get(head, head)
    return words if power in ("", "1") else f"{words}, power {power}"


def _about(results: Results) -> Iterator[str]:
    data, seeds = results["data"], results["seeds"]
    yield from (f"## {results['study']}", "")
    yield (
        f"{data['train']} training images, {data['val']} validation images. {results['trunk']}. {_choice(results)} "
        f"everything below is of validation, with trunks and heads trained on all training images (seeds "
        f"{_listed(seeds['confirming'])}). Heads but the first were trained on the finished trunk of the first, so "
        "that all rank the same masks."
    )
    yield ""
    yield f"`{results['command']}`: {results['minutes']:.0f} minutes of training and evaluation, after an "\
          f"interruption those of the last attempt. {_origins(results)}"  # fmt: skip
    yield ""


def _choice(results: Results) -> str:
    """How the variant came about, before what is of validation."""
    data, seeds = results["data"], results["seeds"]["choosing"]
    if not seeds:
        return "Nothing was chosen;"
    return (f"A variant was chosen on {data['choose']} of the training images, with trunk and heads trained on the "
            f"other {data['fit']} (seed {_listed(seeds)});")  # fmt: skip


def _origins(results: Results) -> str:
    """When, where and from what the seeds were trained; seeds of one program and machine in one sentence."""
    seeds = results["seeds"]
    by_program: dict[tuple[str, ...], list[int]] = {}
    for seed, of in zip((*seeds["choosing"], *seeds["confirming"]), results["origins"], strict=True):
        key = (of["time"][:10], of.get("git_commit", "")[:12], of["machine"], of.get("gpus", ""), of["workers"])
        by_program.setdefault(key, []).append(seed)
    sentences = []
    for (day, commit, machine, gpus, workers), of_key in by_program.items():
        parts = [day, f"commit {commit}" if commit else "", machine, gpus, f"--workers {workers}"]
        sentences.append(f"Seed{'s' * (len(of_key) > 1)} {_listed(of_key)}: {', '.join(filter(None, parts))}.")
    if weights := results["origins"][0]["weights"]:
        checksum = f" (SHA-256 {weights['sha256'][:16]})" if weights["sha256"] else ""
        lacks = f", which lacks {_listed(weights['missing'])}: they begin at random" if weights["missing"] else ""
        sentences.append(f"Trunks begin with {weights['name']}{checksum}{lacks}.")
    return " ".join(sentences)


def _listed(values: Sequence[int | str]) -> str:
    return ", ".join(map(str, values))


def _rankings(results: Results) -> Iterator[str]:
    yield from (
        "Masks ranked by class score x what the head predicts, to the power of 1 if none is named. Mask AP: mean ± "
        "deviation over seeds; in brackets 95% intervals over images and seeds. The variant in bold was fixed "
        "beforehand.",
        "",
    )
    yield from _table(results["rankings"], results["variant"]["ranking"])


def _agreements(results: Results) -> Iterator[str]:
    yield from (
        "Correlation with the true MaskIoU, over the 100 best detections of an image by class score and over the "
        "matched ones of these (MaskIoU 0.5 or more, several of which may be of one instance).",
        "",
    )
    yield from _correlations(results["agreement"])


def _screening(results: Results) -> Iterator[str]:
    candidates, seeds = results["candidates"], results["seeds"]["choosing"]
    if not seeds:
        return
    chosen = f"{', '.join(candidates)} competed" if len(candidates) > 1 else "only powers were chosen"
    over = "images and seeds" if len(seeds) > 1 else "images alone, since there is one seed"
    yield from (
        f"The same where a variant was chosen; {chosen}. Powers are the best on these very images, so that their rows "
        f"flatter; intervals are over {over}.",
        "",
    )
    yield from _table(results["screened"], results["variant"]["ranking"])
    yield from _correlations(results["screened agreement"])


def _correlations(agreement: Results) -> Iterator[str]:
    """A row for each head but those of the paper's ablations."""
    heads = [head for head in agreement if head not in ABLATIONS]
    columns = ("spearman, all", "pearson, matched", "spearman, matched")

    def row(head: str) -> list[str]:
        of = agreement[head]
        name = head if head == CLASS else named(ranking(head, 1.0))
        return [name, interval(of["pearson, all"], sign=False), *(shown(of[key]["mean"]) for key in columns)]

    yield from markdown_table(["head", "Pearson, all", *(key.capitalize() for key in columns)], map(row, heads))


def _table(rankings: Results, chosen: str) -> Iterator[str]:
    """A row for each ranking but those of the paper's ablations."""
    first = [CLASS, f"{PAPER}^1", f"{FROZEN}^1"]
    rest = [n for n in rankings if n not in (*first, ORACLE) and n.rpartition("^")[0] not in ABLATIONS]
    more = [key for key in rankings[CLASS] if key.startswith("AP at ")]

    def row(name: str) -> list[str]:
        of = rankings[name]
        cells = [spread(of["AP"]), shown(of["AP50"]["mean"], ".1f"), shown(of["AP75"]["mean"], ".1f")]
        cells += [shown(of[key]["mean"]) for key in more]
        cells += ["" if name == CLASS else interval(of["gain"])]
        cells += [closes(rankings, name) if "closed" in of and name != ORACLE else ""]
        cells += [interval(of["over paper"]) if "over paper" in of and name != f"{PAPER}^1" else ""]
        label = f"**{named(name)}**" if name == chosen else named(name)
        return [label, *cells]

    titles = ["ranking", "AP", "AP50", "AP75", *more, "gain over class score", "oracle gap closed",
              "over the paper's head with the trunk"]  # fmt: skip
    yield from markdown_table(titles, [row(name) for name in (*first, *rest, ORACLE)])


def _claims(results: Results) -> Iterator[str]:
    best, paper = results["variant"]["ranking"], f"{PAPER}^1"
    rankings, known = results["rankings"], results["agreement"]
    for_ap = "goal=ap" in results["variant"]["options"]
    no_maskiou = ", since it does not predict MaskIoU" if for_ap else ""
    gap, published = interval(results["gap"]), f"the paper's ResNet-18 closes {PAPER_CLOSES} on COCO"
    if has_gap(rankings):
        yield f"- The paper's head closes {closes(rankings, paper)} of the oracle gap of {gap} AP; {published}."
    else:
        yield f"- The oracle's gain of {gap} AP may be none, so no head can close a share of it; {published}."
    yield "- Its correlation over the 100 best detections of an image is "\
          f"{interval(known[PAPER]['pearson, all'], sign=False)}; the paper's 0.74."  # fmt: skip
    variant = results["variant"]
    product = f"class score x {'worth' if for_ap else 'MaskIoU'}^{variant['power']:g}"
    closing = f"closes {closes(rankings, best)}, " if has_gap(rankings) else ""
    yield f"- Fixed beforehand: {named(best)} (`{variant['options']}`, {product}). It "\
          f"{closing}is {interval(rankings[best]['over paper'])} AP over "\
          f"{named(paper)}, and its correlation is {interval(known[variant['head']]['pearson, all'], sign=False)}"\
          f"{no_maskiou}."  # fmt: skip
    for name, of in results["best over"].items():
        if name != paper:
            same = ", which had the same schedule" if name == f"{FROZEN}^1" else ""
            yield f"- It is {interval(of)} AP over {named(name)}{same}."
    yield ""


def _ablations(results: Results) -> Iterator[str]:
    rankings, published = results["rankings"], results["published"]
    heads = [FROZEN, *(head for head in ABLATIONS if ranking(head, 1.0) in rankings)]
    if len(heads) == 1:
        return
    ours = {head: rankings[ranking(head, 1.0)]["gain"] for head in heads}
    theirs = {head: published[head] - published[CLASS] for head in heads}
    yield from ("Tables 4 to 6 of the paper, each head on the finished trunk; gains over the class score, in AP. Each "
                "interval is for itself: of twenty pairs without a difference about one excludes 0.", "")  # fmt: skip
    r = {head: shown(results["agreement"][head]["pearson, all"]["mean"]) for head in heads}
    rows = [[head, interval(ours[head]), shown(theirs[head], "+.2f"), r[head]] for head in heads]
    yield from markdown_table(["head", "ours", "paper, COCO", "r, all"], rows)
    for title, pairs in results["pairs"].items():
        yield f"- {title}: {_order(pairs, published)}"
    yield ""


def _order(pairs: Sequence[Results], published: Mapping[str, float]) -> str:
    """How many pairs of heads are in the paper's order; and of those, how many certainly."""

    def signs(pair: Results) -> float:
        one, other = (published[head] for head in pair["heads"])
        return (pair["mean"] or 0.0) * (one - other)

    compared = [p for p in pairs if len({published[head] for head in p["heads"]}) == 2 and p["mean"] is not None]
    alike = [p for p in compared if signs(p) > 0]
    certain = [p for p in compared if None not in (p["low"], p["high"]) and p["low"] * p["high"] > 0]
    against = "; ".join(", ".join(p["heads"]) for p in compared if p not in alike)
    return (
        f"{len(alike)} of {len(compared)} pairs in the paper's order, of which chance gives half"
        f"{f' (not {against})' if against else ''}; of the "
        f"{len(certain)} that differ by an interval without 0, {len([p for p in certain if p in alike])}."
    )


def _boxes(results: Results) -> Iterator[str]:
    box, rankings, others = results["box"], results["rankings"], results["others"]
    yield f"- Box AP with the paper's head is {spread(box['paper'])}."
    if "plain" in box:
        yield f"- Box AP of a Mask R-CNN without it is {spread(box['plain'])}; with the head "\
              f"{interval(box['difference'])}. Its masks ranked by class score: mask AP "\
              f"{spread(others[f'plain, {CLASS}'])}."  # fmt: skip
        yield f"- SoftNMS: mask AP {spread(rankings[CLASS]['AP'])} by class score and "\
              f"{spread(rankings[f'{PAPER}^1']['AP'])} by mask score; with hard NMS "\
              f"{spread(others[f'nms, {CLASS}'])} and {spread(others['nms, mask score'])}."  # fmt: skip
    yield ""


def _limits(results: Results) -> Iterator[str]:
    limits, errors = results["limits"], results["errors"]
    yield from (
        "What limits the gain: mask AP if a head knew the true MaskIoU of some detections (power 1); thirds are by "
        "area. The oracle keeps what a head says where the true one is 0, so it is not quite what knows all.",
        "",
    )
    known = [name for name in next(iter(limits.values())) if name != "none"]
    titles = ["head", "as it is", *(f"knew {name}" for name in known)]
    rows = [[named(ranking(head, 1.0)), *(shown(of[name]) for name in ("none", *known))] for head, of in limits.items()]
    yield from markdown_table(titles, rows)
    yield from ("Predicted less true MaskIoU by the true one: mean, and mean of its size.", "")
    bins = next(iter(errors.values()))
    titles = ["head", *(f"{b['low']:g} to {b['high']:g}" for b in bins)]

    def cell(of: Mapping[str, float]) -> str:
        return f"{shown(of['bias'], '+.2f')}, {shown(of['error'])}" if of["count"] else ""

    yield from markdown_table(titles, [[named(ranking(head, 1.0)), *map(cell, of)] for head, of in errors.items()])
