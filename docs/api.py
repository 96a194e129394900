"""Writes docs/api.md, the reference of the library, from the docstrings: `python -m docs.api`.

The modules are parsed and not imported. What has no docstring, or a name that begins with an underscore, is left out;
of a torch module there is how it is made and called.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
INTRODUCTION = """\
# API

Made from the docstrings by `python -m docs.api`; a test fails where it is not what they say. This is the method, which
needs no cluster: models, images to batches, detections to rows, rows to numbers.

```python
from pathlib import Path

from msrcnn import load_model, predict
from msrcnn.data.coco import read_coco

model = load_model("runs/first")
dataset = read_coco(Path("instances_val.json"))
print(len(dataset.images), "images of", [c.name for c in dataset.categories], len(dataset.rejected), "set aside")
for found in predict(model, [Path("val", image.file_name) for image in dataset.images]):
    print(found.image, found.names[:3], found.mask_scores[:3], found.masks().shape)
```

The detector in a training loop of one's own, on the first shard of a data set. `load_weights` gives it weights to begin
with; `.to("cuda")` moves model and batch.

```python
from pathlib import Path

import pyarrow.parquet as pq

from msrcnn.data.batching import draw, make_batch
from msrcnn.detector import MaskScoringRCNN
from msrcnn.presets import find_preset
from msrcnn.solver import learning_rate, make_optimizer, set_learning_rate
from msrcnn.weights import save_model
from pipelines.manifest import read_manifest
from pipelines.stored_rows import truths_of

preset, manifest = find_preset("demo"), read_manifest("shards/train")  # the preset knows 3 categories
rows = pq.read_table("shards/train/" + manifest.parts[0].file).slice(0, 4)
images, truths = rows["image"].to_pylist(), truths_of(rows)
model = MaskScoringRCNN(preset.model).train()
optimizer = make_optimizer(model, preset.solver)
for step in range(3):
    draws = [draw(preset.solver.seed, step, truth.image_id) for truth in truths]  # what is mirrored and sampled
    losses = model(make_batch(images, truths, preset.data, draws))  # scalars by name
    optimizer.zero_grad()
    sum(losses.values()).backward()
    set_learning_rate(optimizer, learning_rate(preset.solver, step, steps_per_epoch=1))
    optimizer.step()
    print(step, {name: round(loss.item(), 3) for name, loss in losses.items()})
categories = [(c.number, c.source_id, c.name) for c in manifest.categories]
save_model(Path("own.pt"), model, preset.data, categories)  # what load_model and every command take
```
"""
MODULES: dict[str, tuple[str, ...]] = {
    "msrcnn.prediction": ("Picture", "Prediction", "predict"),
    "msrcnn.errors": ("InputError",),
    "msrcnn.presets": ("Preset", "PRESETS", "find_preset"),
    "msrcnn.config": (),
    "msrcnn.maskiou_config": ("MaskIoUConfig",),
    "msrcnn.inference_config": ("InferenceConfig", "SelectionChanges"),
    "msrcnn.detector": ("MaskScoringRCNN",),
    "msrcnn.structures": (),
    "msrcnn.weights": ("Checkpoint", "save_model", "load_model"),
    "msrcnn.pretrained": ("WeightsReport", "load_weights"),
    "msrcnn.data.coco": (),
    "msrcnn.data.decoding": (),
    "msrcnn.data.batching": (),
    "msrcnn.rows": (),
    "msrcnn.detection_rows": (),
    "msrcnn.masks": (),
    "msrcnn.rle": (),
    "msrcnn.metrics.coco_ap": (),
    "msrcnn.metrics.maskiou": (),
    "msrcnn.metrics.quality": (),
    "msrcnn.metrics.fusion": (),
    "msrcnn.metrics.rankings": (),
    "msrcnn.metrics.ranked": ("MaskAP", "RankedMasks"),
    "msrcnn.metrics.matches": (),
    "msrcnn.metrics.thresholds": (),
    "msrcnn.metrics.resampling": (
        "Interval",
        "image_draws",
        "on_draws",
        "drawn_pearson",
        "percentiles",
        "hierarchical",
        "drawn_difference",
        "simultaneous",
    ),
    "msrcnn.metrics.tide": (),
    "msrcnn.metrics.figures": (),
}
"""What the page has, in its order: names of a module, or all public ones."""
CALLED = {"nn.Module": ("forward",)}
"""Of subclasses of these the methods that are shown."""
SECTION = re.compile(r"(Args|Returns|Raises|Attributes):")
ENTRY = re.compile(r"(\*{0,2}\w[\w.]*(?:, \w+)*): (.*)")
WIDTH = 100
"""Of a signature in one line."""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION.rstrip()]
    for name, only in MODULES.items():
        module = Module(name)
        parts += [f"## {name}", markdown(ast.get_docstring(module.tree)), *module.described(only)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(docstring: str | None) -> str:
    """A docstring with its sections (Args, Returns, ...) as lists."""
    out: list[str] = []
    section = ""
    for line in (docstring or "").splitlines():
        text = line.strip()
        if (match := SECTION.fullmatch(text)) and not line.startswith(" "):
            section = match[1]
            out.append(f"*{section}*\n")
        elif section and line.startswith("    "):
            begins = not line.startswith("     ")
            if begins and section != "Returns" and (entry := ENTRY.fullmatch(text)):
                out.append(f"- `{entry[1]}`: {entry[2]}")
            elif begins and section == "Returns" and out[-1].startswith("*"):
                out.append(text)
            else:
                out.append(f"  {text}" if section != "Returns" else text)
        else:
            section = section if not text else ""
            out.append(line)
    return "\n".join(out).strip()


class Module:
    """A module of which the page tells."""

    def __init__(self, name: str) -> None:
        source = (ROOT / (name.replace(".", "/") + ".py")).read_text()
        self.tree, self.lines = ast.parse(source), source.splitlines()

    def described(self, only: tuple[str, ...]) -> Iterator[str]:
        """Its public classes, functions and constants, or those that are named."""
        for node, following in pairwise([*self.tree.body, ast.Pass()]):
            name = _name(node)
            if not name or (name not in only if only else name.startswith("_")):
                continue
            if isinstance(node, ast.ClassDef):
                yield from self.of_class(node)
            elif isinstance(node, ast.FunctionDef):
                yield from of_function(node, f"### {name}")
            elif text := _literal(following):
                yield f"### {name}"
                yield markdown(text)

    def of_class(self, node: ast.ClassDef) -> Iterator[str]:
        """A class, its fields, how it is made, its public methods."""
        if not ast.get_docstring(node):
            return
        bases = ", ".join(map(ast.unparse, node.bases))
        yield f"### class {node.name}{f'({bases})' if bases else ''}"
        yield markdown(ast.get_docstring(node))
        yield "\n".join(self.fields(node))
        for part in node.body:
            if not isinstance(part, ast.FunctionDef):
                continue
            if part.name == "__init__" and len(part.args.args) > 1:
                yield signature(part, node.name)
            elif not part.name.startswith("_") and part.name in CALLED.get(bases, (part.name,)):
                yield from of_function(part, f"#### {node.name}.{part.name}")

    def fields(self, node: ast.ClassDef) -> Iterator[str]:
        """The fields of a dataclass, or the members of an enumeration, each as an item of a list."""
        for part, following in pairwise([*node.body, ast.Pass()]):
            name = _name(part)
            if not name or name.startswith("_") or isinstance(part, (ast.ClassDef, ast.FunctionDef)):
                continue
            told = " ".join(_literal(following).split()) or self.comment(part)
            yield f"- `{ast.unparse(part)}`{f': {told}' if told else ''}"

    def comment(self, node: ast.stmt) -> str:
        """What stands behind a statement in its line."""
        assert node.end_lineno is not None
        line = self.lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
        return line.partition("# ")[2].strip()


def of_function(node: ast.FunctionDef, title: str) -> Iterator[str]:
    """A function or method with its signature, a property with its type."""
    if not (text := ast.get_docstring(node)):
        return
    yield title
    if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
        assert node.returns is not None
        yield f"`{ast.unparse(node.returns)}`"
    else:
        yield signature(node, node.name)
    yield markdown(text)


def signature(node: ast.FunctionDef, name: str) -> str:
    """A call as code, an argument a line where one line would be too long."""
    result = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    given = node.args
    first_default = len(given.args) - len(given.defaults)
    arguments = []
    for i, argument in enumerate(given.args):
        default = f"={ast.unparse(given.defaults[i - first_default])}" if i >= first_default else ""
        arguments.append(f"{ast.unparse(argument)}{default}")
    arguments += [f"*{ast.unparse(given.vararg)}"] if given.vararg else ["*"] if given.kwonlyargs else []
    for argument, value in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        arguments.append(ast.unparse(argument) + (f"={ast.unparse(value)}" if value else ""))
    arguments = [argument for argument in arguments if argument not in ("self", "cls")]
    line = f"{name}({', '.join(arguments)}){result}"
    if len(line) > WIDTH:
        line = f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){result}"
    return f"```text\n{line}\n```"


def _name(node: ast.stmt) -> str:
    """What a statement defines; empty if nothing with one name."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return node.name
    target = (
        node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
    )
    return target.id if isinstance(target, ast.Name) else ""


def _literal(node: ast.stmt) -> str:
    """The text of a statement that is nothing but a text."""
    value = node.value if isinstance(node, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


if __name__ == "__main__":
    PAGE.write_text(page())
