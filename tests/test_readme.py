"""The README's tables say what the committed reports say.

A figure in a table links to its report in checkpoints/reports:

    [99 of 100 (95 to 100 %)](checkpoints/reports/lift_planner.json)     successes of an evaluation, 95 % interval
    [0.95](checkpoints/reports/fidelity_lift.json#value_auc)             a number in any report, and where it stands

The part after # is a path of keys and indices joined by dots; a key is in lower case, with a `-` for whatever is no
letter, digit or underscore. `+20 points (12 to 28), p = 2e-6` needs no link of its own: it compares the two evaluations
that its row links. A figure without a report carries a †, in its cell, its row's first cell, its column's header, or,
for the whole table, in the header's first cell.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.compare import compare
from agent.evaluation.statistics import wilson

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
REPORTS = sorted((ROOT / "checkpoints" / "reports").glob("*.json"))
MARK = "†"

LINK = re.compile(r"\[([^]]*)\]\((checkpoints/reports/[^)#]+\.json)(?:#([^)]+))?\)")
SUCCESSES = re.compile(r"(\d+) of (\d+)(?: \((\d+) to (\d+) %\))?")
DIFFERENCE = re.compile(r"([+-]?\d+) points? \(([+-]?\d+) to ([+-]?\d+)\), p = ([\d.e+-]+)")
SETTING = re.compile(r"`[^`=]+=[^`]+`")  # such as `policy=planner_low_data`, in a row's title, of one column alone
NUMBER = re.compile(r"([+-]?[\d,]*\.?\d+)( %)?")


@dataclass(frozen=True)
class Table:
    """header and rows, as the markdown of their cells. line: of the header, in the README."""

    line: int
    header: list[str]
    rows: list[list[str]]


def tables(text: str) -> Iterator[Table]:
    """All tables of a markdown text."""
    lines = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S).split("\n")
    starts = [i for i, line in enumerate(lines) if re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line.strip())]
    for i in starts:
        end = next((j for j in range(i + 1, len(lines)) if not lines[j].startswith("|")), len(lines))
        header, *rows = (row.strip().strip("|").split("|") for row in (lines[i - 1], *lines[i + 1 : end]))
        yield Table(i, [cell.strip() for cell in header], [[cell.strip() for cell in row] for row in rows])


def check_table(table: Table, root: Path = ROOT) -> None:
    """AssertionError for a figure that differs from its report, has none and no mark, or is marked without need."""
    needed: set[tuple[int, int]] = set()  # places of the marks that mark something: row (0 the header), column
    for number, row in enumerate(table.rows, start=1):
        reports = []
        for column, cell in enumerate(row[1:], start=1):
            where = f"README.md, table at line {table.line}, {row[0]!r}, {table.header[column]!r}"
            for text, path, key in LINK.findall(cell):
                reports.append(report := read(root / path, where))
                check_origin(report, f"{SETTING.sub('', row[0])} {table.header[column]}", f"{where}: {path}")
                check_figure(plain(text), report, key, where)
            rest = plain(LINK.sub("", cell))
            if len(reports) == 2 and DIFFERENCE.fullmatch(rest):
                check_difference(rest, *reports, where)
            elif re.search(r"\d", rest):
                places = {(number, column), (number, 0), (0, column), (0, 0)}
                marks = {(i, j) for i, j in places if MARK in [table.header, *table.rows][i][j]}
                assert marks, f"{where}: {rest!r} has neither a link to its report nor a {MARK}"
                needed |= marks
        for code in SETTING.findall(row[0]) if reports else []:
            made = any(is_made_with(report, code.strip("`")) for report in reports)
            assert made, f"README.md, table at line {table.line}: no report of {row[0]!r} was made with {code}"
    for i, cells in enumerate([table.header, *table.rows]):
        for j, cell in enumerate(cells):
            unneeded = MARK in cell and (i, j) not in needed
            assert not unneeded, f"README.md, table at line {table.line}: nothing needs the {MARK} of {cell!r}"


def read(path: Path, where: str) -> dict[str, Any]:
    assert path.is_file(), f"{where}: there is no {path}"
    return json.loads(path.read_text())


def plain(cell: str) -> str:
    """Without emphasis and mark."""
    return cell.replace("*", "").replace(MARK, "").strip()


def check_origin(report: dict[str, Any], titles: str, where: str) -> None:
    """What the titles of a row and a column have in `code` is what the report says of its making, and so is a task."""
    for code in re.findall(r"`([^`]+)`", titles):
        assert is_made_with(report, code), f"{where} was not made with `{code}`"
    for word in re.findall(r"\b[A-Z]\w{3,}", titles):
        is_task = any(word in env_id(json.loads(path.read_text())) for path in REPORTS)
        assert not is_task or word in env_id(report), f"{where} is of {env_id(report)}"


def is_made_with(report: dict[str, Any], code: str) -> bool:
    """Whether a setting, a split, a policy or a checkpoint begins with these letters."""
    settings = shlex.split(str(report.get("command")))
    values = [setting.partition("=")[2] for setting in settings]
    names = [str(report.get("split")), str(report.get("policy")), (report.get("checkpoint") or {}).get("name", "")]
    return any(text.startswith(code) for text in [*settings, *values, *names])


def env_id(report: dict[str, Any]) -> str:
    env = report.get("env")
    return env["id"] if isinstance(env, dict) else str(env)


def check_figure(text: str, report: dict[str, Any], key: str, where: str) -> None:
    """What a link says, against its report."""
    if key:
        found = NUMBER.fullmatch(text)
        assert found, f"{where}: {text!r} is no number"
        value = 100 * at(report, key) if found[2] else at(report, key)
        assert rounds_to(value, found[1]), f"{where}: {text!r}, but the report has {value} at {key}"
        return
    found = SUCCESSES.fullmatch(text)
    assert found, f"{where}: {text!r} does not read as `99 of 100 (95 to 100 %)`"
    outcomes = report["outcomes"]
    successes = sum(outcome["success"] for outcome in outcomes)
    said = f"{successes} of {len(outcomes)} ({report['ci95'][0]:.1%} to {report['ci95'][1]:.1%})"
    right = (int(found[1]), int(found[2])) == (successes, len(outcomes))
    if found[3]:
        right &= all(rounds_to(100 * end, shown) for end, shown in zip(report["ci95"], found.groups()[2:], strict=True))
    assert right, f"{where}: {text!r}, but the report has {said}"


def check_difference(text: str, first: dict[str, Any], second: dict[str, Any], where: str) -> None:
    """`+20 points (12 to 28), p = 2e-6`, against the two evaluations."""
    points, low, high, p = DIFFERENCE.fullmatch(text).groups()
    found = compare(first, second)
    pairs = zip((found["points"], *found["ci95"]), (points, low, high), strict=True)
    right = all(rounds_to(value, shown) for value, shown in pairs) and float(f"{found['p']:.1g}") == float(p)
    assert right, f"{where}: {text!r}, but the reports give {found}"


def at(report: Any, key: str) -> float:
    """The number at a path such as `horizons.0.psnr`."""
    for name in key.split("."):
        if isinstance(report, list):
            report = report[int(name)]
        else:
            report = {re.sub(r"[^a-z0-9_]+", "-", known.lower()): value for known, value in report.items()}[name]
    return float(report)


def rounds_to(value: float, shown: str) -> bool:
    """Whether a value is within half a unit of the last digit that is shown."""
    decimals = len(shown.partition(".")[2])
    return abs(value - float(shown.replace(",", ""))) <= 0.5 * 10**-decimals + 1e-9


@pytest.mark.parametrize("table", tables(README), ids=lambda table: f"line {table.line}")
def test_tables_say_what_the_reports_say(table):
    """Catches a figure that went on standing after its report was made again, or that never had one."""
    check_table(table)


def test_the_mark_is_explained():
    """Catches a mark that a reader must guess."""
    used = any(MARK in cell for table in tables(README) for row in (table.header, *table.rows) for cell in row)
    assert used == any(line.startswith(f"{MARK} ") for line in README.split("\n"))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_reports_name_their_origin(path):
    """Catches a report that nobody can make again, or one that was edited by hand."""
    report = json.loads(path.read_text())
    assert report["command"].startswith("python -m agent.")
    assert {"commit", "device", "precision", "cpu", "threads"} <= report["provenance"].keys()
    if "outcomes" in report:
        successes = sum(outcome["success"] for outcome in report["outcomes"])
        assert (report["episodes"], len(report["seeds"])) == (len(report["outcomes"]),) * 2
        assert report["ci95"] == pytest.approx(wilson(successes, report["episodes"]))


EVALUATION = {
    "outcomes": [{"seed": i, "success": i < 8} for i in range(10)], "ci95": [0.49, 0.943],
    "env": {"id": "nextstate/Lift-v0"}, "split": "seen", "criterion": "lifted", "policy": "planner",
    "checkpoint": {"name": "nextstate-s"}, "command": "python -m agent.evaluate env=lift seed=0",
    "parts": [{"Parallel / other, way": 0.1234}],
}  # fmt: skip


@pytest.mark.parametrize(
    "cell, error",
    [
        ("[**8 of 10** (49 to 94 %)](A)", ""),
        ("[8 of 10](A)", ""),
        ("[9 of 10](A)", "the report has 8 of 10"),
        ("[8 of 10 (49 to 95 %)](A)", "the report has 8 of 10 .49.0% to 94.3%."),
        ("[about 8](A)", "does not read as"),
        ("[0.123](A#parts.0.parallel-other-way)", ""),
        ("[12 %](A#parts.0.parallel-other-way)", ""),
        ("[0.124](A#parts.0.parallel-other-way)", "the report has 0.1234"),
        ("8 of 10", "neither a link"),
        ("8 of 10 †", ""),
        ("[8 of 10](A), and 7 of 9", "neither a link"),
        ("[8 of 10](A) †", "nothing needs"),
        ("[8 of 10](A) | [6 of 10](B) | +20 points (-10 to 43), p = 0.5", ""),
        ("[8 of 10](A) | [6 of 10](B) | +30 points (-10 to 43), p = 0.5", "the reports give"),
        ("[8 of 10](C)", "there is no"),
    ],
)
def test_what_would_be_found(tmp_path, cell, error):
    """Catches a check that lets everything pass."""
    folder = tmp_path / "checkpoints" / "reports"
    folder.mkdir(parents=True)
    second = EVALUATION | {"outcomes": [{"seed": i, "success": 2 <= i < 8} for i in range(10)]}
    for name, report in (("A", EVALUATION), ("B", second)):
        (folder / f"{name}.json").write_text(json.dumps(report))
    cell = re.sub(r"\(([ABC])", r"(checkpoints/reports/\1.json", cell)
    (table,) = tables(f"Words.\n\n| task | `planner` | other | gain |\n|---|---|---|---|\n| Lift, `seen` | {cell} |\n")
    if not error:
        check_table(table, tmp_path)
        return
    with pytest.raises(AssertionError, match=error):
        check_table(table, tmp_path)


@pytest.mark.parametrize(
    "title, error",
    [
        ("dB FoldHalf", "is of nextstate/Lift"), ("Lift, `unseen`", "not made with `unseen`"),
        ("`een`", "not made with"), ("Lift, `seed=1`", "not made with"),
    ],
)  # fmt: skip
def test_a_report_of_something_else_is_found(title, error):
    """Catches a link to the report of another task or split."""
    with pytest.raises(AssertionError, match=error):
        check_origin(EVALUATION, title, "here")
