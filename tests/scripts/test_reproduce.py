"""The command that reproduces a table, on a table of its own: digits, few steps."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning, runs
from bptoolkit.models import mlp
from bptoolkit.runs import environment
from bptoolkit.runs.interrupt import interruptible
from bptoolkit.runs.published import MARKS, Column, Figure, Table

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
STREAM = cl.split(data.gaussian_classes(jax.random.key(1), 4, 8, 4, test_rows=4), 2)


@pytest.fixture(scope="module")
def reproduce():
    sys.path.insert(0, str(SCRIPTS))
    import reproduce

    sys.path.remove(str(SCRIPTS))
    return reproduce


@pytest.fixture(scope="module")
def published_runs(reproduce):
    return sys.modules["published_runs"]


def small(steps=4):
    def define(method, scenario):
        if method == "Unknown":
            return None
        strategy = {"None": cl.naive, "ER": cl.replay(2)}[method]
        return cl.Experiment(STREAM, strategy(learning.backprop(mlp(4, 5, 4))), optax.sgd(0.1), steps, batch=4)

    row = {"Class": Figure(50.0, 1.0, "rec")}
    return Table(
        "Small", "Nobody (2026)", (), {"Class": Column("class", lambda r: 100 * cl.average_accuracy(r))},
        {"None": row, "ER": row, "Unknown": row}, define, lambda method, scenario: (), {"None": 1.0, "ER": 2.0},
    )  # fmt: skip


@pytest.fixture(scope="module")
def three(published_runs, tmp_path_factory):
    """A folder with the results of three seeds without a remedy, as the command makes them."""
    folder = tmp_path_factory.mktemp("three")
    wanted = published_runs.Wanted(small(), 3, ("None",), ("Class",), 0, folder)
    for seed in range(3):
        published_runs.run_group(wanted, published_runs.Job("None", "class", (seed,)))
    return folder


@pytest.fixture
def command(reproduce, published_runs, three, monkeypatch, tmp_path, capsys):
    """The command line on the small table, and the runs that it made; `begun` puts the first of those three there."""
    made, table = [], [small()]
    monkeypatch.setattr(reproduce, "prepare", lambda config, devices: None)
    monkeypatch.setattr(reproduce, "load", lambda name, known: table[0])
    carry_out = runs.carry_out

    def counted(folder, config, experiments, **options):
        made.append(tuple(config["seeds"]))
        return carry_out(folder, config, experiments, **options)

    monkeypatch.setattr(published_runs.runs, "carry_out", counted)
    monkeypatch.setattr(published_runs, "calibrate", lambda table, job: 60.0)

    def go(*arguments):
        made.clear()
        folders = ("--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
        code = reproduce.main(["nobody2026/small", *folders, *arguments])
        told = capsys.readouterr()
        return code, told.out + told.err, list(made)

    def begun(seeds):
        folder = tmp_path / "runs" / "nobody2026-small"
        folder.mkdir(parents=True)
        for seed in range(seeds):
            shutil.copy(three / f"None-class-{seed}.json", folder)
        go("--seeds", "0", "--methods", "None")

    go.table, go.folder, go.begun = table, tmp_path, begun
    return go


def test_seeds_that_are_there_are_those_that_the_command_makes(command):
    """What the tests below begin with."""
    command("--seeds", "1", "--methods", "None")
    path = command.folder / "runs" / "nobody2026-small" / "None-class-0.json"
    of = lambda one: {name: value for name, value in one.items() if name != "seconds"}
    run = of(json.loads(path.read_text()))
    shutil.rmtree(path.parent)
    command.begun(1)
    assert of(json.loads(path.read_text())) == run


def test_it_runs_what_is_missing_and_nothing_twice(command):
    code, text, made = command("--seeds", "2", "--methods", "None", "ER")
    assert code == 0
    assert len(made) == 4  # a device, so a seed at a time
    assert "4 runs, about 6.0 min on this machine" in text  # a minute for each of None, twice that for ER
    code, text, made = command("--seeds", "3", "--methods", "None", "ER")
    assert made == [(2,), (2,)]
    cells = json.loads((command.folder / "out" / "nobody2026-small.json").read_text())["cells"]
    assert [(cell["method"], cell["n"]) for cell in cells] == [("None", 3), ("ER", 3), ("Unknown", 0)]
    assert command("--seeds", "3", "--methods", "None")[2] == []


def test_the_estimate_is_of_plain_training_and_grows_with_its_updates(published_runs):
    """From 30 updates a task, whatever the protocol's number."""
    estimates = [
        published_runs.calibrate(small(steps), published_runs.Job("ER", "class", (0,))) for steps in (1, 10**6)
    ]
    assert 0 < estimates[0] < 60
    assert estimates[1] > 100 * estimates[0]


def test_a_comparison_names_the_source_of_the_runs_and_not_its_own(command, monkeypatch):
    monkeypatch.setattr(environment, "source", lambda: {"commit": "old", "dirty": False})
    command("--seeds", "1", "--methods", "None")
    monkeypatch.setattr(environment, "source", lambda: {"commit": "new", "dirty": True})
    command("--seeds", "0", "--methods", "None")
    out = command.folder / "out" / "nobody2026-small.json"
    assert json.loads(out.read_text())["made"]["sources"] == [{"commit": "old", "dirty": False}]
    command("--seeds", "2", "--methods", "None")
    assert len(json.loads(out.read_text())["made"]["sources"]) == 2


def test_rows_that_were_not_asked_for_stay_in_the_file(command):
    """Those of seeds that are here, and those committed by others; not those of another protocol."""
    out = command.folder / "out" / "nobody2026-small.json"
    counts = lambda: {cell["method"]: cell["n"] for cell in json.loads(out.read_text())["cells"]}
    command.begun(2)
    command("--seeds", "2", "--methods", "None", "ER")
    command("--seeds", "2", "--methods", "None")
    assert counts() == {"None": 2, "ER": 2, "Unknown": 0}
    assert "former" not in json.loads(out.read_text())
    committed = json.loads(out.read_text())
    for path in (command.folder / "runs" / "nobody2026-small").glob("ER-*"):
        path.unlink()
    _, text, _ = command("--seeds", "3", "--methods", "None")
    assert "ER " not in text
    assert counts() == {"None": 3, "ER": 2, "Unknown": 0}
    assert json.loads(out.read_text())["former"] == [committed["made"]]
    command.table[0] = command.table[0]._replace(deviations=lambda method, scenario: ("half the rows",))
    command("--seeds", "1", "--methods", "None")
    assert counts() == {"None": 1, "ER": 0, "Unknown": 0}


def test_few_seeds_do_not_take_the_place_of_many(command):
    """Three are in the file, one is here: it is printed, and the three stay; with none here, the three are printed."""
    out, folder = command.folder / "out" / "nobody2026-small.json", command.folder / "runs" / "nobody2026-small"
    cell = lambda: json.loads(out.read_text())["cells"][0]
    command.begun(3)
    three = cell()
    for seed in (1, 2):
        (folder / f"None-class-{seed}.json").unlink()
    _, text, _ = command("--seeds", "1", "--methods", "None")
    assert "None/Class: the 3 seeds of the file stay there" in text
    assert f"{three['values']['0']:.2f}   1 " in text
    assert cell() == three
    (folder / "None-class-0.json").unlink()
    before = out.read_text()
    _, text, _ = command("--seeds", "0", "--methods", "None")
    assert f"{three['measured']:.2f} ± {three['sem']:.2f}   3 " in text
    assert "no seed is here of None/Class: as in" in text
    assert out.read_text() == before


def test_new_seeds_are_added_to_those_of_another_machine(command):
    """Two are committed and not here: only the third is run, and the cell is that of all three in one place."""
    out, folder = command.folder / "out" / "nobody2026-small.json", command.folder / "runs" / "nobody2026-small"
    command.begun(3)
    whole = json.loads(out.read_text())["cells"][0]
    out.unlink()
    (folder / "None-class-2.json").unlink()
    command("--seeds", "0", "--methods", "None")
    committed = json.loads(out.read_text())
    assert committed["cells"][0]["n"] == 2
    for path in folder.glob("*.json"):
        path.unlink()
    _, text, made = command("--seeds", "3", "--new", "--methods", "None")
    assert made == [(2,)]
    assert "None/Class: seeds 0, 1 are those of the file" in text
    assert json.loads(out.read_text())["cells"][0] == whole
    assert json.loads(out.read_text())["former"] == [committed["made"]]
    assert command("--seeds", "3", "--new", "--methods", "None")[2] == []
    assert command("--seeds", "3", "--methods", "None")[2] == [(0,), (1,)]


def test_a_new_seed_that_diverges_is_said_beside_those_of_the_file(command):
    out, folder = command.folder / "out" / "nobody2026-small.json", command.folder / "runs" / "nobody2026-small"
    command.begun(3)
    last = folder / "None-class-2.json"
    broken = json.loads(last.read_text()) | {"finite": False}
    last.unlink()
    out.unlink()
    command("--seeds", "0", "--methods", "None")
    for path in folder.glob("*.json"):
        path.unlink()
    last.write_text(json.dumps(broken))
    for _ in range(2):
        _, text, _ = command("--seeds", "0", "--methods", "None")
        assert "None/Class: seeds that diverged are left out: 1" in text
        cell = json.loads(out.read_text())["cells"][0]
        assert (cell["n"], cell["deviations"]) == (2, ["seeds that diverged are left out: 1"])


def test_a_seed_that_is_missing_is_run_again_and_is_the_same(command):
    command.begun(2)
    values = lambda: json.loads((command.folder / "out" / "nobody2026-small.json").read_text())["cells"][0]["values"]
    first = values()
    (command.folder / "runs" / "nobody2026-small" / "None-class-1.json").unlink()
    again = command("--seeds", "2", "--methods", "None")
    assert again[2] == [(1,)]
    np.testing.assert_array_equal(values(), first)


def test_stopped_within_a_seed_it_goes_on_from_there_and_ends_bit_identical(command, published_runs, monkeypatch):
    """By SIGTERM after the first of two tasks, at one commit; taken up at another, which the comparison names too."""
    command("--seeds", "1", "--methods", "ER")
    kept = command.folder / "runs" / "nobody2026-small" / "ER-class-0.json"
    whole = json.loads(kept.read_text())
    kept.unlink()

    tasks, counted = [], published_runs.runs.carry_out

    def stopping(*arguments, **options):
        def task(name, moment):
            tasks.append(moment.task)
            if len(tasks) == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        heard = runs.Watcher(lambda *told: None, lambda *told: None, task, lambda *told: None)
        return counted(*arguments, **options | {"watcher": heard})

    monkeypatch.setattr(published_runs.runs, "carry_out", stopping)
    monkeypatch.setattr(environment, "source", lambda: {"commit": "old", "dirty": False})
    code, text, _ = command("--seeds", "1", "--methods", "ER")
    assert code == 128 + signal.SIGTERM
    assert "published/ER/class is saved after 4 of 8 updates. The same command goes on from there." in text
    assert not kept.exists()

    monkeypatch.setattr(environment, "source", lambda: {"commit": "new", "dirty": False})
    code, text, _ = command("--seeds", "1", "--methods", "ER")
    assert (code, tasks) == (0, [1, 2])  # the first was not done again
    assert "less what 1 of their groups have done already" in text
    resumed = json.loads(kept.read_text())
    assert (resumed["accuracy"], resumed["untrained"]) == (whole["accuracy"], whole["untrained"])
    assert (resumed["begun"], resumed["source"]["commit"]) == ([{"commit": "old", "dirty": False}], "new")
    assert not list((kept.parent / "unfinished").iterdir())


def test_a_signal_in_the_last_moments_of_a_group_ends_the_command(command, published_runs, monkeypatch):
    """When all updates of its seeds are made; these are kept, and the next group is not begun."""
    run_group = published_runs.run_group

    def signalled(wanted, job):
        with interruptible():
            run_group(wanted, job)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(published_runs, "run_group", signalled)
    code, text, made = command("--seeds", "2", "--methods", "None")
    assert (code, made) == (128 + signal.SIGTERM, [(0,)])
    assert "Interrupted by SIGTERM. What has finished is kept. The same command goes on from there." in text
    assert (command.folder / "runs" / "nobody2026-small" / "None-class-0.json").exists()


def test_what_another_process_did_meanwhile_is_not_done_again(command, published_runs, monkeypatch):
    folder, run_group = command.folder / "runs" / "nobody2026-small", published_runs.run_group

    def beside(wanted, job):
        run_group(wanted, job)
        held = json.loads(job.path(folder, 0).read_text())
        job.path(folder, 1).write_text(json.dumps(held | {"seed": 1}))

    monkeypatch.setattr(published_runs, "run_group", beside)
    code, _, made = command("--seeds", "2", "--methods", "None")
    assert (code, made) == (0, [(0,)])


def test_a_result_of_another_budget_is_not_taken_for_it(command):
    command.begun(1)
    command.table[0] = small(steps=5)
    _, text, made = command("--seeds", "0", "--methods", "None")
    assert made == []
    assert json.loads((command.folder / "out" / "nobody2026-small.json").read_text())["cells"][0]["n"] == 1
    assert " 0       -" in text


def test_a_result_of_another_definition_is_not_taken_for_it(command):
    """Of the same budget, but made by other numbers: said, and made anew; a seed broken off is not gone on with."""
    command.begun(1)
    command.table[0] = small()._replace(definition="other")
    code, text, made = command("--seeds", "1", "--methods", "None")
    assert (code, made) == (0, [(0,)])
    assert "1 seeds that are there are of another protocol or definition of the table, and are not taken." in text
    assert command("--seeds", "1", "--methods", "None")[2] == []


def test_a_definition_follows_the_numbers_and_not_the_words(published_runs, tmp_path):
    """Those of a table's own file, and of one that it shares."""
    folder = tmp_path / "experiments" / "published"
    (folder / "one").mkdir(parents=True)
    own, shared = folder / "one" / "table.py", folder / "shared.py"
    mine = '"""Words."""\nfrom experiments.published.shared import net\nRATE = 0.1\n'
    texts = {own: mine, shared: "net = 400  # units\n"}

    def digest(**changes):
        for path, text in texts.items():
            path.write_text(changes.get(path.stem, lambda text: text)(text))
        return published_runs.definition("experiments.published.one.table", tmp_path)

    first, put = digest(), lambda old, new: lambda text: text.replace(old, new)
    assert digest(table=put("Words", "Others"), shared=put("units", "")) == first
    assert digest(table=put("0.1", "0.2")) != first
    assert digest(shared=put("400", "401")) != first


def test_another_json_is_not_taken_for_a_comparison(command):
    out = command.folder / "out" / "nobody2026-small.json"
    out.parent.mkdir()
    out.write_text(json.dumps({"title": "Small"}))
    code, text, _ = command("--seeds", "0")
    assert code == 2
    assert "must be a comparison, as this command leaves it, got another JSON" in text


def test_a_table_that_nobody_has_published_is_held_against_its_peer_seed_by_seed(command, reproduce, monkeypatch):
    """Here the same table, for which nothing was run anew: no difference on the seeds that both have."""
    command.begun(2)
    peer = command.table[0]
    mine = peer._replace(published={"None": {"Class": None}}, peer="nobody2026/small")
    monkeypatch.setattr(reproduce, "load", lambda name, known: mine if name == "nobody2026/mine" else peer)
    folders = ("--runs", str(command.folder / "runs"), "--out", str(command.folder / "out"))
    reproduce.main(["nobody2026/mine", *folders, "--seeds", "3"])
    cell = reproduce.cell_of(mine, "None", "Class", 0, command.folder / "runs" / "nobody2026-mine")
    assert (cell.n, cell.published.mark, cell.difference, cell.near) == (3, "own", 0.0, None)
    assert cell.published.mean == pytest.approx((cell.values[0] + cell.values[1]) / 2)


def test_a_peer_without_runs_here_is_the_committed_one_of_the_same_protocol_and_randomness(
    command, reproduce, monkeypatch
):
    """So that a clean clone can compare: seed 1 is run here, seed 0 is committed only."""
    command.begun(2)
    folder = command.folder / "runs" / "nobody2026-small"
    (folder / "None-class-0.json").unlink()
    path = command.folder / "out" / "nobody2026-small.json"
    committed = json.loads(path.read_text())
    committed["cells"][0]["values"] = {"0": 1.0, "1": 2.0}
    path.write_text(json.dumps(committed))
    monkeypatch.setattr(reproduce, "RESULTS", path.parent)
    theirs = lambda key=0: reproduce.of_peer("nobody2026/small", "None", "Class", key, command.folder / "runs")
    here = reproduce.by_seed(command.table[0], "None", "Class", 0, folder)[0]
    assert theirs() == {0: 1.0} | here
    assert theirs(key=1) == {}
    command.table[0] = command.table[0]._replace(deviations=lambda method, scenario: ("half the rows",))
    assert theirs() == {}


def test_a_method_that_is_not_there_is_said_to_be_missing(command):
    code, text, made = command("--seeds", "1", "--methods", "Unknown")
    assert (code, made) == (0, [])
    assert "Unknown/Class: not run: there is no such method yet" in text


def test_results_of_another_key_are_not_mixed_into_a_file(command):
    command.begun(1)
    code, text, made = command("--seeds", "2", "--methods", "None", "--key", "1")
    assert (code, made) == (2, [])
    assert "holds results of --key 0, got 1. Name another folder" in text


def test_bad_words_are_refused(command):
    for arguments, sentence in (
        (("--methods", "Magic"), "no row 'Magic'"),
        (("--columns", "Magic"), "no column 'Magic'"),
        (("--seeds", "-1"), "seeds must be a whole number of at least 0"),
        (("--seeds", "4294967297"), "seeds must be a whole number of at most 100000"),
        (("--devices", "0"), "devices must be a whole number of at least 1"),
        (("--devices", "1000000"), "devices must be a whole number of at most 1024"),
        (("--limit", "nan"), "limit must be a finite number of at least 0"),
        (("--limit", "-5"), "limit must be a finite number of at least 0"),
        (("--out", __file__), "--out must be a folder"),
    ):
        code, text, _ = command(*arguments)
        assert code == 2
        assert sentence in text


def test_every_table_names_its_source_and_marks_its_figures(reproduce):
    """No data set is read for that."""
    known = reproduce.tables()
    assert "vandeven2022/split_mnist" in known
    for name in known:
        table = reproduce.load(name, known)
        assert table.reference
        for row in table.published.values():
            assert set(row) <= set(table.columns)
            assert all(figure is None or figure.mark in MARKS for figure in row.values())
        assert set(table.weight) <= set(table.published)
    with pytest.raises(ValueError, match="There is no table 'vandeven/split'"):
        reproduce.load("vandeven/split", known)
