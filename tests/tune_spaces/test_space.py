"""What is swept is read from TOML, and every mistake in a file is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from msrcnn.errors import InputError
from tune_spaces.definition import Range
from tune_spaces.settings import base_of, configure
from tune_spaces.space import find_space, parse, space_names, space_of

TOP = 'title = "t"\ncolumns = ["AP"]\n'
ROW = TOP + '[[rows]]\nname = "r"\n'
VARY = TOP + "[vary]\n"


def drawn(text: str) -> str:
    return TOP + f'search = "random"\nsamples = 3\n[vary]\n{text}\n'


@pytest.mark.parametrize("name", [*space_names(), *(f"table{n}" for n in range(1, 8))])
def test_every_file_loads_and_every_row_configures(name):
    space = find_space(name)
    assert space.title
    assert space.about
    for row in space.rows:
        settings = space.settings(row)
        model, solver, data = configure(base_of(settings), settings)
        base = base_of(settings)
        assert (solver, data) == (base.solver, base.data)
        for setting, value in settings.items():
            if setting.startswith("model.maskiou."):
                assert getattr(model.maskiou, setting.rpartition(".")[2]) == value


def test_what_a_search_draws_from():
    space = find_space("hyperparameters")
    assert (space.search, space.samples) == ("random", 12)
    assert space.vary["solver.lr"] == Range(0.005, 0.04, log=True)
    assert set(space.vary) == {"solver.lr", "model.maskiou.weight"}  # nothing that a finished model can be asked for


def test_settings_given_as_texts_are_those_of_a_file():
    texts = ["solver.lr=0.005,0.02", "model.selection.method=gaussian,hard", "data.flip=true,false"]
    texts.append("data.short-side=64")
    file = b"""title = "t"
columns = ["AP"]
[vary]
solver.lr = [0.005, 0.02]
model.selection.method = ["gaussian", "hard"]
data.flip = [true, false]
data.short_side = [64]
"""
    assert space_of(texts).vary == parse(file, "x.toml").vary


@pytest.mark.parametrize(("texts", "says"), [
    (["solver.lr"], r"--vary = 'solver.lr' is not accepted; it must be SETTING=VALUE,VALUE,\.\.\., as solver.lr=0.005"),
    (["solver.lr="], "--vary = 'solver.lr=' is not accepted"),
    (["solver.rl=1"], r"--vary, solver\.rl = 1: no such setting; did you mean solver\.lr\?"),
    (["solver.lr=0.1", "solver.lr=0.2"], "another setting than solver.lr, which is given already"),
    (["solver.lr=0.1,fast"], "--vary, solver.lr = 'fast' is not accepted; it must be a finite number"),
    (["solver.lr=0.1,0.1"], r"--vary: \[vary\] solver\.lr = \[0\.1, 0\.1\] is not accepted; .* without repetition"),
    (["solver.lr=0.1,-1"], r"--vary: \[vary\] lr=-1: solver\.lr = -1\.0 is not accepted; it must be above 0"),
    (["solver.epochs=1.5"], "--vary, solver.epochs = 1.5 is not accepted; it must be a whole number"),
])  # fmt: skip
def test_texts_that_are_refused(texts, says):
    with pytest.raises(InputError, match=says):
        space_of(texts)


def test_quoted_dots_tables_and_dotted_keys_are_the_same():
    forms = [
        '[fixed]\n"model.maskiou.tau" = 0.3\nsolver.lr = 1\n',
        "[fixed.model.maskiou]\ntau = 0.3\n[fixed.solver]\nlr = 1.0\n",
        "[fixed]\nmodel = {maskiou.tau = 0.3}\nsolver.lr = 1\n",
    ]
    for form in forms:
        fixed = parse((TOP + form + '[[rows]]\nname = "r"\n').encode(), "x.toml").fixed
        assert fixed == {"model.maskiou.tau": 0.3, "solver.lr": 1.0}
        assert isinstance(fixed["solver.lr"], float)


def test_a_grid_is_every_combination():
    space = parse((VARY + "solver.lr = [1, 2]\nmodel.maskiou.input = ['a', 'f', 'e']\n").encode(), "x.toml")
    combinations = space.combinations()
    assert len(combinations) == 6
    assert combinations[1] == {"solver.lr": 1.0, "model.maskiou.input": "f"}
    whole = parse(drawn("solver.epochs = {low = 2, high = 9}").encode(), "x.toml").vary["solver.epochs"]
    assert whole == Range(2, 9, whole=True)


def test_settings_that_only_together_are_right():
    """Three levels want three lists of anchors: neither would be accepted before the other."""
    text = ROW + "settings = {model.levels = [3, 4, 5], model.anchor_sizes = [[32], [64], [128]]}\n"
    space = parse(text.encode(), "x.toml")
    settings = space.settings(space.rows[0])
    model, _, _ = configure(base_of(settings), settings)
    assert model.levels == (3, 4, 5)
    assert model.anchor_sizes == ((32,), (64,), (128,))


MISTAKES = {
    "not TOML": ("title =", "not a TOML file"),
    "not UTF-8": (b"\xff", "not a TOML file"),
    "no title": ('columns = ["AP"]', "title is missing"),
    "nothing swept": (TOP, "nothing is swept: give [[rows]], or [vary]"),
    "empty vary": (VARY, "nothing is swept"),
    "rows only published": (ROW + "only_published = true", "nothing is swept"),
    "both": (ROW + "[vary]\nsolver.lr = [1]", "[[rows]] and [vary] are both given"),
    "unknown key": ("titel = 1\n" + TOP, "titel = 1: unknown key; did you mean title?"),
    "unknown key of a row": (ROW + 'rankd = "class"', "row 'r', rankd = 'class': unknown key; did you mean ranked?"),
    "kind of a key": ('title = 3\ncolumns = ["AP"]', "title = 3 is not accepted; it must be a text"),
    "kind in a list": ('title = "t"\ncolumns = [1]', "columns = [1] is not accepted; it must be a list, each a text"),
    "unknown column": ('title = "t"\ncolumns = ["APx"]\n[[rows]]\nname = "r"', "columns = 'APx'"),
    "column twice": ('title = "t"\ncolumns = ["AP", "AP"]\n[[rows]]\nname = "r"', "without repetition"),
    "published": (ROW + "published = {AP50 = 3.0}", "row 'r', published = 'AP50' is not accepted; it must be one of"),
    "published text": (ROW + 'published = {AP = "3"}', "row 'r', published AP = '3'"),
    "published nan": (ROW + "published = {AP = nan}", "row 'r', published AP = nan"),
    "same name": (ROW + '[[rows]]\nname = "r"', "[[rows]] name = 'r'"),
    "ranked": (ROW + 'ranked = "best"', "row 'r', ranked = 'best' is not accepted; it must be class, mask or oracle"),
    "no MaskIoU to rank by": (ROW + "settings = {model.maskiou.enabled = false}", "row 'r', ranked = 'mask'"),
    "against": (ROW + 'against = "q"', "row 'r', against = 'q' is not accepted; it must be the name of a row"),
    "tables": (ROW + "tables = [9]", "row 'r', tables = 9"),
    "settings published": (ROW + "only_published = true\nsettings = {solver.lr = 1}", "row 'r', settings"),
    "unknown setting": (
        ROW + 'settings = {model.maskiou.inptu = "b"}',
        "row 'r', model.maskiou.inptu = 'b': no such setting; did you mean model.maskiou.input?",
    ),
    "setting like no other": (ROW + "settings = {zzz = 1}", "there are preset, weights, model.*"),
    "classes": (ROW + "settings = {model.num_classes = 3}", "model.num_classes = 3: follows from the data set"),
    "setting twice": (ROW + 'settings = {"solver.lr" = 1, solver.lr = 2}', "solver.lr = 2: given twice"),
    "preset": (ROW + 'settings = {preset = "r19"}', "preset = 'r19' is not accepted; it must be r18-fpn, r50-fpn"),
    "letter": (ROW + 'settings = {model.maskiou.input = "z"}', "model.maskiou.input = 'z' is not accepted; it must be"),
    "true is no 1": (ROW + "settings = {model.maskiou.target = true}", "it must be 1, 2 or 3"),
    "text for a number": (ROW + 'settings = {solver.lr = "1"}', "solver.lr = '1' is not accepted; it must be a finite"),
    "nan for a number": (ROW + "settings = {solver.lr = nan}", "solver.lr = nan is not accepted"),
    "half an epoch": (ROW + "settings = {solver.epochs = 1.5}", "solver.epochs = 1.5 is not accepted; it must be a"),
    "number for a list": (ROW + "settings = {model.levels = 4}", "model.levels = 4 is not accepted; it must be a list"),
    "the model refuses": (ROW + "settings = {model.maskiou.tau = 2}", "row 'r': maskiou.tau = 2.0 is not accepted"),
    "the solver refuses": (ROW + "settings = {solver.lr = 0}", "row 'r': solver.lr = 0.0 is not accepted"),
    "the input refuses": (ROW + "settings = {data.short_side = 8}", "data.short_side = 8 is not accepted"),
    "the model refuses what varies": (VARY + "model.maskiou.tau = [0.0, 1.0]", "[vary] tau=1: maskiou.tau = 1.0"),
    "the model refuses an end": (drawn("model.maskiou.tau = {low = 0.5, high = 1}"), "maskiou.tau = 1.0"),
    "search": (TOP + 'search = "tpe"\nsamples = 1\n[vary]\nsolver.lr = [1]', "search = 'tpe' is not accepted"),
    "samples": (TOP + 'search = "random"\n[vary]\nsolver.lr = [1]', "samples = 0 is not accepted; it must be at"),
    "samples of a grid": (TOP + "samples = 2\n[vary]\nsolver.lr = [1]", "samples = 2 is not accepted; it must be"),
    "distribution in a grid": (VARY + "solver.lr = {low = 1, high = 2}", "[vary] solver.lr = '1.0 to 2.0'"),
    "low and high": (drawn("solver.lr = {low = 2, high = 2}"), "[vary] solver.lr, low = 2.0 is not accepted"),
    "log of 0": (drawn("solver.momentum = {low = 0, high = 0.9, log = true}"), "it must be above 0 with log = true"),
    "no high": (drawn("solver.lr = {low = 2}"), "[vary] solver.lr, high is missing"),
    "unknown key of a range": (drawn("solver.lr = {low = 1, high = 2, step = 1}"), "step = 1: unknown key"),
    "log is no number": (drawn("solver.lr = {low = 1, high = 2, log = 1}"), "log = 1 is not accepted; it must be true"),
    "letters have no range": (drawn("model.maskiou.input = {low = 1, high = 2}"), "only numbers have a distribution"),
    "no list": (VARY + "solver.lr = 1", "[vary] solver.lr = 1 is not accepted; it must be a list of values or {low"),
    "empty list": (VARY + "solver.lr = []", "[vary] solver.lr = [] is not accepted"),
    "value twice": (VARY + "solver.lr = [1, 1.0]", "without repetition"),
    "unknown varied": (VARY + "solver.lrr = [1]", "[vary] solver.lrr = 1: no such setting; did you mean solver.lr?"),
    "fixed and varied": (TOP + "[fixed]\nsolver.lr = 1\n[vary]\nsolver.lr = [1]", "absent here or in [fixed]"),
    "too many": (
        VARY + "".join(f"solver.{n} = {list(range(1, 12))}\n" for n in ("epochs", "batch", "warmup_steps")),
        "[vary] = '1331 combinations' is not accepted; it must be at most 1000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_file(mistake, tmp_path):
    text, message = MISTAKES[mistake]
    file = tmp_path / "mine.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        find_space(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_users_own_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(ROW + "settings = {solver.epochs = 3}")
    space = find_space(file)
    assert (space.name, space.rows[0].settings) == ("mine", {"solver.epochs": 3})


def test_what_is_not_there_and_what_is(tmp_path):
    with pytest.raises(InputError, match=r"table9: no such sweep and no such file; there are backbone, .*table7"):
        find_space("table9")
    with pytest.raises(InputError, match="cannot be read"):
        find_space(tmp_path)


def test_reading_takes_neither_torch_nor_ray():
    code = "import sys, tune_spaces.space, tune_spaces.heads as h; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
