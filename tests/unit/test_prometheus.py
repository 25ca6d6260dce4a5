"""The shipped rules for Prometheus: valid, each tested, with exported metrics only, and documented."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import promql
import pytest
import yaml
from exported import OF_PROMETHEUS, OF_TARGETS, exported
from promtool import promtool

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "packaging" / "prometheus"
ALERTS, RECORDING = FOLDER / "dnsprobe-alerts.yaml", FOLDER / "dnsprobe-recording.yaml"
TESTS = Path(__file__).with_name("prometheus")


def rules(path: Path, kind: str = "") -> list[dict[str, Any]]:
    """Return the rules of a file, or only those of one kind: "alert" or "record"."""
    groups = yaml.safe_load(path.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in {"", *rule}]


def cases(name: str, kind: str) -> list[dict[str, Any]]:
    """Return the expectations in a file of tests for promtool."""
    return [case for test in yaml.safe_load((TESTS / name).read_text("utf-8"))["tests"] for case in test[kind]]


def known() -> dict[str, set[str]]:
    """Return the labels of each metric that is exported or recorded."""
    found = {name: labels | OF_TARGETS for name, labels in exported().items()} | OF_PROMETHEUS
    for rule in rules(RECORDING) + rules(ALERTS, "record"):
        of = set().union(*(found[name] for name in promql.metrics(rule["expr"])))
        # The rule names the labels that it drops, unless it divides one recorded series by another.
        assert " without (" in rule["expr"] or ":ratio_" in rule["record"]
        buckets = {"le"} if "histogram_quantile" in rule["expr"] else set()
        found[rule["record"]] = of - promql.labels(rule["expr"]) - buckets
    return found


@pytest.mark.parametrize("path", [ALERTS, RECORDING], ids=lambda path: path.stem)
def test_promtool_accepts_the_rules(path: Path) -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(path))
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"{len(rules(path))} rules found".encode() in done.stdout


@pytest.mark.parametrize("name", ["alerts.yaml", "recording.yaml"])
def test_promtool_tests(name: str) -> None:
    done = promtool("test", "rules", str(TESTS / name))
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_each_alert_is_tested_to_fire_and_to_stay_silent() -> None:
    tested = cases("alerts.yaml", "alert_rule_test")
    names = {rule["alert"] for rule in rules(ALERTS, "alert")}
    assert {case["alertname"] for case in tested if case["exp_alerts"]} == names
    assert {case["alertname"] for case in tested if not case["exp_alerts"]} == names


def test_each_recording_rule_is_tested() -> None:
    names = {rule["record"] for rule in rules(RECORDING)}
    assert {case["expr"] for case in cases("recording.yaml", "promql_expr_test")} == names


def test_names_of_recording_rules_name_the_labels_that_remain() -> None:
    """The form is level:metric:operations; the level has the labels that remain."""
    for rule in rules(RECORDING) + rules(ALERTS, "record"):
        level, _, operations = rule["record"].split(":")
        assert set(level.split("_")) == (known()[rule["record"]] - {"job"} or {"job"})
        assert re.match(r"(rate|count|increase|ratio_rate|p\d\d_rate)", operations)


def test_each_alert_has_a_severity_and_texts() -> None:
    for rule in rules(ALERTS, "alert"):
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_every_metric_and_label_is_exported() -> None:
    there = known()
    for rule in rules(RECORDING) + rules(ALERTS):
        used = promql.metrics(rule["expr"])
        assert used
        assert used <= there.keys()
        texts = rule.get("annotations", {}).values()
        shown = {label for text in texts for label in re.findall(r"\$labels\.(\w+)", text)}
        assert promql.labels(rule["expr"]) | shown <= set().union(*(there[name] for name in used))


def test_metrics_and_labels_of_an_expression() -> None:
    expression = (
        'sum by (a) (rate(x_total{b="c{d}", e!~"f"}[5m] offset 1d)) > 2 and on (g) (y unless z:w:rate5m offset 15m)'
    )
    assert promql.metrics(expression) == {"x_total", "y", "z:w:rate5m"}
    assert promql.labels(expression) == {"a", "b", "e", "g"}


def test_the_page_on_metrics_has_each_alert() -> None:
    text = (REPOSITORY / "docs" / "metrics.md").read_text("utf-8").split("\n## What to alert on\n")[1].split("\n## ")[0]
    about_dnsprobe, answers, examples, trees = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    assert dict(re.findall(r"^\| `(\w+)` +\| `(.+?)` +\|", text, re.MULTILINE)) == {
        rule["alert"]: rule["expr"] for rule in about_dnsprobe["rules"]
    }
    # Their expressions are long, so the page has them in words.
    in_words = re.findall(r"^\| \[`(\w+)`\]\(troubleshooting.md#([\w-]+)\) ", text, re.MULTILINE)
    assert [alert for alert, _ in in_words] == [rule["alert"] for rule in answers["rules"] if "alert" in rule]
    headings = re.findall(r"^## (.+)$", (REPOSITORY / "docs/troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    assert {anchor for _, anchor in in_words} <= {heading.lower().replace(" ", "-") for heading in headings}
    assert re.findall(r"^- `(\w+)`", text, re.MULTILINE) == [
        rule["alert"] for rule in examples["rules"] + trees["rules"] if "alert" in rule
    ]
