"""Which processes make a run together: from flags, and from SLURM's variables (faked)."""

import pytest

from bptoolkit.runs.devices import Group, group_of

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "tux[003-004]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
}
PORT = 61440 + (4711 + 2) % 4096


def test_a_process_started_by_srun_finds_its_group():
    assert group_of(variables=STEP) == Group(f"tux003:{PORT}", 5, 8)


def test_two_steps_of_a_job_do_not_meet():
    assert group_of(variables=STEP | {"SLURM_STEP_ID": "3"}) == Group(f"tux003:{PORT + 1}", 5, 8)


def test_flags_go_before_what_slurm_says():
    assert group_of("head:1234", variables=STEP) == Group("head:1234", 5, 8)
    assert group_of("head:1234", 0, 2, variables=STEP) == Group("head:1234", 0, 2)


@pytest.mark.parametrize(
    ("given", "variables"),
    [
        ({}, {}),
        ({"processes": 1}, {}),
        ({"processes": 1}, STEP),
        ({}, STEP | {"SLURM_NTASKS": "1"}),
        ({}, {name: value for name, value in STEP.items() if name != "SLURM_STEP_NODELIST"}),  # in sbatch, not in srun
    ],
    ids=["alone", "said so", "said so within SLURM", "a step of one", "a batch script"],
)
def test_a_process_by_itself_has_no_group(given, variables):
    assert group_of(**given, variables=variables) is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"coordinator": "a:1"}, "--process and --processes must be added"),
        ({"process": 0, "processes": 2}, "--coordinator must be added"),
        ({"processes": 2}, "--coordinator and --process must be added"),
        ({"coordinator": "a:1", "process": 2, "processes": 2}, r"--process must be in 0 … 1, got 2"),
        ({"coordinator": "a:1", "process": -1, "processes": 2}, r"--process must be in 0 … 1, got -1"),
        ({"coordinator": "a", "process": 1, "processes": 2}, "--coordinator must be HOST:PORT, .* got 'a'"),
    ],
)
def test_half_a_group_is_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        group_of(**given, variables={})
