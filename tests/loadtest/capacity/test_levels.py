"""Sweeps, GPU rows and the reports about them."""

from pathlib import Path

import pytest

from loadtest.capacity import __main__ as command
from loadtest.capacity import levels
from loadtest.capacity.costs import write_costs
from loadtest.capacity.hardware import GPUS, SHAPES, predict_costs
from loadtest.capacity.levels import find_most_sessions, make_mix, run_level
from loadtest.capacity.report import describe_costs, describe_levels, describe_validation
from loadtest.capacity.simulation import MixOutcome
from loadtest.capacity.validate import compare, make_trials
from tests.loadtest.capacity.fake_costs import make_costs


def test_a_sweep_stops_where_the_latency_is_not_held() -> None:
    swept = list(find_most_sessions(make_costs(), 20.0, 1.5, [1, 2, 4, 8, 16, 32, 64]))
    waits = [level.row()["final_p95_ms"] for level in swept]
    assert len(swept) < 7
    assert all(wait is not None and float(wait) <= 1500 for wait in waits[:-1])
    assert float(waits[-1] or 0) > 1500


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gpu_rows_are_marked_as_predictions(gpu: str, shape: str) -> None:
    costs = predict_costs(GPUS[gpu], SHAPES[shape], make_costs())
    assert not costs.measured
    assert "nothing has confirmed" in "\n".join(describe_costs(costs))
    assert len(costs.decoders) == 1


def test_more_bandwidth_makes_faster_passes() -> None:
    h100, h200 = (predict_costs(GPUS[name], SHAPES["large-v3"], make_costs()).decoders[0] for name in ("h100", "h200"))
    assert h200.decode_call_s < h100.decode_call_s


def test_a_table_has_a_row_for_each_level() -> None:
    costs = make_costs()
    mixes = make_mix(costs, 5.0, sessions=2, clients=1), make_mix(costs, 5.0, rate_hz=1.0)
    lines = describe_levels([run_level(costs, mix, 5.0) for mix in mixes])
    assert len([line for line in lines if line.startswith("|")]) == 4
    assert "1 client in a closed loop and 2 live sessions" in lines[2]


def test_sessions_without_a_measured_one_are_an_error() -> None:
    with pytest.raises(ValueError, match="no live session was measured"):
        make_mix(make_costs(streams=()), 5.0, sessions=1)


def test_predicted_is_set_against_measured() -> None:
    costs = make_costs()
    mix = make_mix(costs, 5.0, clients=1)
    row = compare(mix, MixOutcome(10.0, [0.5] * 20), MixOutcome(10.0, [0.4] * 10))
    assert row["figures"]["file_p50_ms"] == {"predicted": 500.0, "measured": 400.0, "ratio": 1.25}
    assert row["figures"]["files_per_s"]["ratio"] == 2.0
    run = {"date": "", "git_revision": "", "machine": "", "load_average_before": "", "python": "", "versions": {}}
    page = describe_validation({"rows": [row], "seconds": 10, "other_cpu_share": 0.0, "run": run})
    assert "0 of 3 figures are within 15%" in page


def test_costs_of_other_recordings_are_refused(tmp_path: Path) -> None:
    from loadtest.support.paths import CLIPS
    from loadtest.support.recordings import read_recordings

    recordings = read_recordings(None, CLIPS, 2)
    with pytest.raises(ValueError, match="measured with other recordings"):
        make_trials(make_costs(), recordings, [], 1.0, tmp_path)


def test_the_command_simulates(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_costs(make_costs(), tmp_path / "costs.json")
    words = ["capacity", "simulate", str(tmp_path / "costs.json"), "--hardware", "measured", "h200", "--seconds", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--most-sessions", "1", "--clients", "2", "--rates", "0.5"])
    monkeypatch.setattr(levels, "WARM_UP_S", 0.0)
    assert command.main() == 0
    printed = capsys.readouterr().out
    assert "H200 SXM (prediction)" in printed
    assert "2 clients in a closed loop" in printed


def test_the_command_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["capacity", "simulate", str(tmp_path / "none.json")])
    assert command.main() == 2
    assert "none.json" in capsys.readouterr().err
