"""The dashboard for Grafana: its script makes it, it can be imported, and its queries use exported metrics."""

from __future__ import annotations

import json
import re

import dashboard
import promql
import pytest
from exported import OF_TARGETS, exported

PANELS = [panel for panel in dashboard.dashboard()["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
#: Variables that Grafana itself defines.
BUILT_IN = {"__rate_interval", "__range"}
#: Metrics without a panel: another panel has the fact, or it matters too little.
NOT_SHOWN = {
    "dnsprobe_events_total",
    "dnsprobe_messages_other_total",
    "dnsprobe_messages_unread_total",
    "dnsprobe_messages_unread_expired_total",
    "dnsprobe_queries_expired_total",
    "dnsprobe_encrypted_connections_expired_total",
    "dnsprobe_responses_expired_total",
    "dnsprobe_unanswered_expired_total",
    "dnsprobe_response_latency_seconds_count",
    "dnsprobe_response_latency_seconds_sum",
    "dnsprobe_config_last_reload_success_timestamp_seconds",
    "dnsprobe_web_config_last_reload_successful",
}


def test_the_file_is_what_the_script_writes() -> None:
    assert dashboard.PLACE.read_text("utf-8") == dashboard.text(), "run packaging/grafana/dashboard.py"


def test_the_dashboard_loads_nothing_from_elsewhere() -> None:
    assert "://" not in dashboard.text()


def test_an_import_finds_the_dashboard_by_its_uid_and_asks_for_the_data_source() -> None:
    found = json.loads(dashboard.text())
    assert (found["uid"], found["id"]) == ("dnsprobe", None)
    assert [variable["name"] for variable in found["templating"]["list"]] == [
        "datasource",
        "instance",
        "domain",
        "unit",
        "to",
    ]
    for panel in PANELS:
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {panel["datasource"]["uid"]}
        assert panel["datasource"]["uid"] == "${datasource}"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = dashboard.dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert all(0 <= x < dashboard.COLUMNS for x, _ in cells)
        taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_has_a_unit_and_reference_ids(panel: dashboard.Json) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == list("ABCDEFGH"[: len(letters)])


@pytest.mark.parametrize("query", QUERIES)
def test_each_query_uses_exported_metrics_and_labels(query: str) -> None:
    there = {name: labels | OF_TARGETS for name, labels in exported().items()}
    used = promql.metrics(query)
    assert used
    assert used <= there.keys()
    assert promql.labels(query) <= set().union(*(there[name] for name in used))


@pytest.mark.parametrize("query", QUERIES)
def test_each_query_uses_the_selected_hosts_domains_units_and_servers(query: str) -> None:
    used = set(re.findall(r"\$(\w+)", query))
    assert "instance" in used
    assert used <= {"instance", "domain", "unit", "to"} | BUILT_IN
    if re.search("dnsprobe_(queries|responses|unanswered)_total", query) and "$__" in query:
        assert {"domain", "unit", "to"} <= used
    # A fixed window would be empty or incomplete if Prometheus scrapes at another interval.
    assert set(re.findall(r"\brate\([^[]*\[([^]]*)\]", query)) <= {"$__rate_interval"}


def test_each_metric_of_dnsprobe_has_a_panel() -> None:
    shown = set().union(*(promql.metrics(query) for query in QUERIES))
    ours = {name for name in exported() if name.startswith("dnsprobe_")}
    assert ours - shown == NOT_SHOWN
