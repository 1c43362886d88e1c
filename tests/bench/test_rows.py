"""The arithmetic, the table and the JSON of the benchmarks; nothing here is timed."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.load import RANDOM, SEQUENTIAL, figure, fio_words
from bench.rows import BARE, OURS, QEMU, ROWS, number, percentile, results, to_json, to_table
from bench.running import Failed

KEYS = ["id", "value", "unit", "against", "ratio", "bar", "holds"]
SAMPLES = {
    ("random", OURS): [9.0, 30.0, 20.0],
    ("random", BARE): [40.0, 10.0, 25.0],
    ("random", QEMU): [11.0],
    ("lag", OURS): [2.5],
    ("backlog", OURS): [100.0],
}


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([5.0], 99, 5.0), ([3.0, 1.0, 2.0], 50, 2.0), (range(1, 101), 99, 99), (range(200), 100, 199)],
)
def test_a_percentile_is_one_of_the_values(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_every_row_has_an_id_of_its_own() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)


def test_figures_are_medians_and_a_bar_is_a_least_ratio_or_a_most_value() -> None:
    found = {one.row.id: one for one in results(ROWS, SAMPLES)}
    assert found["random-bare"].value == 20.0
    assert found["random-bare"].ratio == 0.8
    assert found["random-bare"].holds
    assert not found["random-qemu"].holds
    assert found["lag"].ratio is None
    assert not found["lag"].holds


def test_a_row_without_its_yardstick_is_left_out() -> None:
    assert {one.row.id for one in results(ROWS, SAMPLES)} == {"random-bare", "random-qemu", "lag"}


def test_the_json_has_its_shape() -> None:
    content = json.loads(to_json(results(ROWS, SAMPLES)))
    assert all(list(one) == KEYS for one in content)
    assert content[0] == {
        "id": "random-bare", "value": 20.0, "unit": "IOPS", "against": 25.0, "ratio": 0.8,
        "bar": 0.7, "holds": True,
    }  # fmt: skip


def test_the_table_shows_every_row_and_says_what_was_not_measured() -> None:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(to_table(ROWS, results(ROWS, SAMPLES)))
    lines = {line.split()[1]: line for line in capture.get().splitlines() if line.startswith("│")}
    assert set(lines) == {row.id for row in ROWS}
    assert "0.80 x" in lines["random-bare"]
    assert "yes" in lines["random-bare"]
    assert "not measured" in lines["backlog"]


@pytest.mark.parametrize(("value", "text"), [(0.456, "0.46"), (12.3, "12"), (23456.7, "23,457")])
def test_a_number_has_the_digits_that_it_deserves(value: float, text: str) -> None:
    assert number(value) == text


def test_a_figure_is_taken_from_what_fio_reports(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    job = {"error": 0, "write": {"iops": 123.5, "bw_bytes": 2_000_000, "total_ios": 7}}
    report.write_text("fio: a note\n" + json.dumps({"jobs": [job]}))
    assert figure(report, RANDOM) == 123.5
    assert figure(report, SEQUENTIAL) == 2.0


def test_a_load_that_wrote_nothing_is_no_measurement(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    job = {"error": 0, "write": {"iops": 0, "bw_bytes": 0, "total_ios": 0}}
    report.write_text(json.dumps({"jobs": [job]}))
    with pytest.raises(Failed, match="0 writes"):
        figure(report, RANDOM)


def test_a_load_goes_to_the_volume_directly_from_a_fixed_seed() -> None:
    words = fio_words(Path("v.img"), 4096, RANDOM.options, Path("report"))
    assert {"--filename=v.img", "--direct=1", "--ioengine=psync"} <= set(words)
    assert any(word.startswith("--randseed=") for word in words)
