"""Write dnsprobe.json, the dashboard for Grafana 10 to 12, in the classic schema. Run it after a change here.

Panels are placed in their order, side by side, until the 24 columns of the grid are full.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]

PLACE = Path(__file__).with_name("dnsprobe.json")
#: The schema of Grafana 10.0. Later versions convert it when they read it.
SCHEMA_VERSION = 38
COLUMNS = 24

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: Matchers for what the variables select. "All" includes queries without a unit.
OF_HOSTS = 'instance=~"$instance"'
OF_UNITS = f'{OF_HOSTS}, unit=~"$unit"'
CHOSEN = f'{OF_HOSTS}, domain=~"$domain", unit=~"$unit", to=~"$to"'
#: Other programs export process_* metrics under the same names: keep those of dnsprobe.
OF_DNSPROBE = "and on (job, instance) dnsprobe_build_info"

RATE = f"rate(dnsprobe_queries_total{{{CHOSEN}}}[$__rate_interval])"
#: Results of queries, and those that are failures: NXDOMAIN and NODATA are answers.
RESULTS = " or ".join(
    f"rate(dnsprobe_{name}_total{{{CHOSEN}}}[$__rate_interval])" for name in ("responses", "unanswered")
)
FAILURES = RESULTS.replace(CHOSEN, f'{CHOSEN}, rcode!~"NOERROR|NODATA|NXDOMAIN"', 1)
#: Metrics of answers without labels of processes.
OF_DOMAINS = f'{OF_HOSTS}, domain=~"$domain"'
LATENCY = f'rate(dnsprobe_response_latency_seconds_bucket{{{OF_DOMAINS}, unit=~"$unit"}}[$__rate_interval])'
NEEDS_ANSWERS = "Needs answers in the configuration of dnsprobe."
QUERIES_A_SECOND = "reqps"
WHO = "instance, domain, tree, unit"


def target(expression: str, legend: str = "") -> Json:
    """Return a query over the time that the dashboard shows."""
    return {"expr": expression, "legendFormat": legend or "__auto", "range": True, "instant": False}


def now(expression: str, form: str = "time_series") -> Json:
    """Return a query at the end of the time that the dashboard shows."""
    return {"expr": expression, "format": form, "range": False, "instant": True}


def rows(expression: str) -> Json:
    """Return a query for the rows of a table."""
    return now(expression, "table")


def panel(kind: str, title: str, targets: Sequence[Json], description: str, *, size: tuple[int, int]) -> Json:
    """Return a panel without its options. ``size`` is columns, and rows of about 30 pixels."""
    lettered = [
        {**one, "refId": chr(ord("A") + at), "datasource": DATASOURCE, "editorMode": "code"}
        for at, one in enumerate(targets)
    ]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": size[0], "h": size[1]},
        "targets": lettered,
    }


def graph(
    title: str, unit: str, targets: Sequence[Json], description: str, *, width: int = 12, stacked: bool = False
) -> Json:
    """Return a panel with lines, or with stacked areas if their sum has a meaning."""
    custom = {"drawStyle": "line", "fillOpacity": 30 if stacked else 5, "showPoints": "auto", "spanNulls": False}
    return panel("timeseries", title, targets, description, size=(width, 8)) | {
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "custom": custom | {"stacking": {"mode": "normal" if stacked else "none", "group": "A"}},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"], "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def number(title: str, unit: str, query: Json, description: str, *, alarm: bool = False) -> Json:
    """Return a panel with one number; with ``alarm``, red from 1 on."""
    steps: list[Json] = [{"color": "green" if alarm else "text", "value": None}]
    if alarm:
        steps.append({"color": "red", "value": 1})
    return panel("stat", title, [query], description, size=(4, 4)) | {
        "fieldConfig": {
            "defaults": {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "area",
        },
    }


def override(column: str, **properties: Any) -> Json:
    """Return the properties of one column of a table that differ from the others."""
    return {
        "matcher": {"id": "byName", "options": column},
        "properties": [{"id": name.replace("_", "."), "value": value} for name, value in properties.items()],
    }


def table(
    title: str, targets: Sequence[Json], description: str, *, columns: dict[str, str], overrides: Sequence[Json] = ()
) -> Json:
    """Return a table. ``columns`` maps the names of Grafana to titles, in the order of the columns."""
    hidden = {"Time": True, "__name__": True, "job": True}
    # Join the results of several queries: one row for each set of labels.
    merge = [{"id": "merge", "options": {}}] if len(targets) > 1 else []
    order = {"indexByName": {name: at for at, name in enumerate(columns)}, "renameByName": columns}
    return panel("table", title, targets, description, size=(24, 9)) | {
        "fieldConfig": {"defaults": {"unit": "short", "custom": {"filterable": True}}, "overrides": list(overrides)},
        "options": {"showHeader": True, "cellHeight": "sm"},
        "transformations": [*merge, {"id": "organize", "options": {"excludeByName": hidden, **order}}],
    }


def queries() -> Iterator[Json]:
    """Yield the panels about who asks for what."""
    yield number(
        "Queries", QUERIES_A_SECOND, target(f"sum({RATE})"), "Queries a second, of everything selected at the top."
    )
    yield number(
        "Queries in this time",
        "short",
        now(f"sum(increase(dnsprobe_queries_total{{{CHOSEN}}}[$__range]))"),
        "Queries of everything selected at the top.",
    )
    yield number(
        "Process trees",
        "short",
        target(f"count(count by (instance, tree) (dnsprobe_queries_total{{{CHOSEN}}}))"),
        "Different process trees that have asked since each daemon was started.",
    )
    yield number("Hosts", "short", target(f"count(dnsprobe_build_info{{{OF_HOSTS}}})"), "Hosts whose dnsprobe answers.")
    yield number(
        "Paths not proved",
        "short",
        target(f"count(dnsprobe_path_verified{{{OF_HOSTS}}} == 0) or vector(0)"),
        "Paths whose queries or answers may not be seen, such as udp4, parts6 and answers4. See Paths below.",
        alarm=True,
    )
    yield number(
        "Queries lost",
        "short",
        now(
            f'ceil(sum(increase(dnsprobe_events_lost_total{{{OF_HOSTS}, reason!="ring_full", reason!="segmented", '
            f'reason!="undecided", reason!="results", reason!="results_waiting"}}'
            "[$__range])))"
        ),
        "Queries that the counts do not include, at least.",
        alarm=True,
    )
    for title, label in (
        ("domain", "domain"),
        ("unit", "unit"),
        ("type", "qtype"),
        ("transport", "transport"),
        ("place of the server", "to"),
    ):
        # Without this, queries without a unit would have no name in the legend.
        rate = named(f"sum by ({label}) ({RATE})", label)
        yield graph(
            f"Queries by {title}",
            QUERIES_A_SECOND,
            [target(rate, f"{{{{{label}}}}}")],
            "A rate sees a series from its second scrape on.",
            stacked=True,
        )
    yield graph(
        "Queries by process tree",
        QUERIES_A_SECOND,
        [target(f"topk(10, sum by (tree) ({RATE}))", "{{tree}}")],
        "The ten process trees that ask most at each moment.",
    )
    yield graph(
        "Encrypted connections",
        "cps",
        [
            target(
                f"sum by (transport, tree) "
                f"(rate(dnsprobe_encrypted_connections_total{{{OF_UNITS}}}[$__rate_interval]))",
                "{{transport}} {{tree}}",
            )
        ],
        "Connections a second to a port of DNS over TLS. Their queries cannot be read, so the domain is not known.",
    )
    yield table(
        "Most talkative process trees",
        [rows(f"topk(25, sum by ({WHO}) (increase(dnsprobe_queries_total{{{CHOSEN}}}[$__range])))")],
        "Queries in the time that the dashboard shows.",
        columns={"Value": "Queries", "tree": "Tree", "domain": "Domain", "unit": "Unit", "instance": "Host"},
        overrides=[override("Queries", decimals=0, custom_cellOptions={"type": "gauge", "mode": "basic"})],
    )
    yield table(
        "New in the last hour",
        [
            rows(
                f"sum by ({WHO}) (dnsprobe_queries_total{{{CHOSEN}}}) "
                f"unless sum by ({WHO}) (present_over_time(dnsprobe_queries_total{{{CHOSEN}}}[1d] offset 1h))"
            )
        ],
        "Process trees that did not ask for a domain in the day before the last hour, with their number of queries. "
        "All trees of a host that was not scraped then are new.",
        columns={"Value": "Queries", "tree": "Tree", "domain": "Domain", "unit": "Unit", "instance": "Host"},
    )


def share_of_failures(labels: str) -> str:
    """Return the share of failures by labels; 0 where all queries succeed."""
    results = f"sum by ({labels}) ({RESULTS})"
    return f"(sum by ({labels}) ({FAILURES}) or 0 * {results}) / ({results} > 0)"


def named(expression: str, label: str) -> str:
    """Return an expression whose empty label has a name for the legend."""
    return f'label_replace({expression}, "{label}", "(none)", "{label}", "")'


def answers() -> Iterator[Json]:
    """Yield the panels about what became of the queries."""
    failures = f"Failures are answers with an error, and no answer. NXDOMAIN and NODATA are answers. {NEEDS_ANSWERS}"
    for label in ("domain", "unit"):
        yield graph(
            f"Failures by {label}",
            "percentunit",
            [target(named(share_of_failures(label), label), f"{{{{{label}}}}}")],
            f"The share of queries that fail, of those with a result. {failures}",
        )
    yield graph(
        "Failures by process tree",
        "percentunit",
        [target(f"topk(10, {share_of_failures('tree')} > 0)", "{{tree}}")],
        f"The ten process trees with the largest share of failures at each moment. {failures}",
    )
    yield graph(
        "Results",
        QUERIES_A_SECOND,
        [
            target(f"sum by (rcode) (rate(dnsprobe_responses_total{{{CHOSEN}}}[$__rate_interval]))", "{{rcode}}"),
            target(
                f"sum by (reason) (rate(dnsprobe_unanswered_total{{{CHOSEN}}}[$__rate_interval]))",
                "no answer: {{reason}}",
            ),
        ],
        f"What became of the queries. {NEEDS_ANSWERS}",
        stacked=True,
    )
    for label in ("domain", "unit"):
        yield graph(
            f"Latency by {label}",
            "s",
            [
                target(
                    named(f"histogram_quantile({quantile}, sum by (le, {label}) ({LATENCY})) >= 0", label),
                    f"{{{{{label}}}}} {text}",
                )
                for quantile, text in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
            ],
            f"How long answers took: half, 95 % and 99 % of them took at most this long. {NEEDS_ANSWERS}",
        )
    yield table(
        "Silent",
        [
            rows(
                f"topk(25, sum by ({WHO}) (increase(dnsprobe_unanswered_total{{{CHOSEN}}}[$__range])) > 0 "
                f"unless sum by ({WHO}) (increase(dnsprobe_responses_total{{{CHOSEN}}}[$__range])) > 0)"
            )
        ],
        "Process trees whose queries for a domain all got no answer in the time that the dashboard shows. "
        f"{NEEDS_ANSWERS}",
        columns={"Value": "Queries", "tree": "Tree", "domain": "Domain", "unit": "Unit", "instance": "Host"},
        overrides=[override("Queries", decimals=0)],
    )
    yield graph(
        "Waiting",
        "short",
        [target(f"sum by (domain, transport) (dnsprobe_queries_waiting{{{OF_DOMAINS}}})", "{{domain}} {{transport}}")],
        f"Queries that wait for their answer. Many of them are the first sign of a dead server. {NEEDS_ANSWERS}",
        width=8,
    )
    yield graph(
        "Untracked",
        "short",
        [
            target(
                "sum by (domain, transport) "
                f"(increase(dnsprobe_queries_untracked_total{{{OF_DOMAINS}}}[$__rate_interval]))",
                "{{domain}} {{transport}}",
            )
        ],
        f"Queries of which dnsprobe cannot find out whether they were answered: no failures. {NEEDS_ANSWERS}",
        width=8,
    )
    yield graph(
        "Answers that fit no query",
        "short",
        [
            target(
                f"sum by (reason) (increase(dnsprobe_responses_unmatched_total{{{OF_HOSTS}}}[$__rate_interval]))",
                "{{reason}}",
            )
        ],
        f"“unsolicited”: dnsprobe did not see the query, or the answer is forged. {NEEDS_ANSWERS}",
        width=8,
    )


def losses() -> list[Json]:
    """Return a query for each metric of losses, by reason."""
    return [
        target(
            f"sum by (reason) (increase(dnsprobe_{name}_total{{{OF_HOSTS}}}[$__rate_interval]))",
            f"{text}: {{{{reason}}}}",
        )
        for name, text in (
            ("events_lost", "events lost"),
            ("queries_unattributed", "no room"),
            ("packets_unparsed", "not read"),
            ("lineage_lost", "lineage lost"),
        )
    ] + [
        target(f"sum(increase(dnsprobe_names_undecided_total{{{OF_HOSTS}}}[$__rate_interval]))", "names not decided"),
        target(f"sum(increase(dnsprobe_log_dropped_total{{{OF_HOSTS}}}[$__rate_interval]))", "lines of its own log"),
    ]


def health() -> Iterator[Json]:
    """Yield the panels about dnsprobe itself."""
    hook, proved = f"dnsprobe_hook_info{{{OF_HOSTS}}}", f"dnsprobe_path_verified{{{OF_HOSTS}}}"
    yield table(
        "Paths",
        [
            rows(
                f"{hook} * on (job, instance, path) group_left () {proved} "
                f"or ({proved} unless on (job, instance, path) {hook})"
            )
        ],
        "The hook of each path, and whether the last test queries came back as they were sent.",
        columns={
            "instance": "Host",
            "path": "Path",
            "Value": "Proved",
            "hook": "Hook",
            "attach": "Attached by",
            "symbol": "Symbol",
        },
        overrides=[
            override(
                "Proved",
                mappings=[
                    {
                        "type": "value",
                        "options": {"0": {"text": "no", "color": "red"}, "1": {"text": "yes", "color": "green"}},
                    }
                ],
                custom_cellOptions={"type": "color-text"},
            )
        ],
    )
    yield table(
        "Daemons",
        [
            rows(f"dnsprobe_build_info{{{OF_HOSTS}}}"),
            rows(f"max by (job, instance) (dnsprobe_rules{{{OF_HOSTS}}})"),
            rows(f"max by (job, instance) (dnsprobe_config_last_reload_successful{{{OF_HOSTS}}})"),
            rows(f"time() - max by (job, instance) (process_start_time_seconds{{{OF_HOSTS}}} {OF_DNSPROBE})"),
        ],
        "",
        columns={
            "instance": "Host",
            "version": "Version",
            "Value #B": "Rules",
            "Value #C": "Last reload good",
            "Value #D": "Runs for",
            "Value #A": "Up",
        },
        overrides=[
            override("Runs for", unit="s"),
            override("Last reload good", unit="bool_yes_no"),
            override("Up", custom_hidden=True),
        ],
    )
    yield graph(
        "Lost, and not counted in full",
        "short",
        losses(),
        "docs/metrics.md explains for each whether the queries are counted. “not read: malformed” may be no query.",
    )
    yield graph(
        "Over a fair share",
        "short",
        [
            target(
                "topk(10, sum by (instance, user, unit, resource) "
                f"(increase(dnsprobe_share_exceeded_total{{{OF_HOSTS}}}[$__rate_interval])))",
                "{{instance}} {{user}} {{unit}}: {{resource}}",
            )
        ],
        "Who wanted more room than its share, and was refused. Others lost nothing.",
    )
    yield graph(
        "Series",
        "short",
        [
            target(f"count by (instance) (dnsprobe_queries_total{{{OF_HOSTS}}})", "{{instance}}"),
            target(
                f"sum by (instance) (dnsprobe_series_folded_total{{{OF_HOSTS}}})", "{{instance}} folded into (other)"
            ),
            target(f"sum by (instance) (dnsprobe_series_expired_total{{{OF_HOSTS}}})", "{{instance}} left"),
        ],
        "At most metrics.max_series, and one more for each domain, transport and place of the server.",
    )
    yield graph(
        "Journal entries",
        "cps",
        [
            target(
                f"sum by (instance) (rate(dnsprobe_journal_{name}_total{{{OF_HOSTS}}}[$__rate_interval]))",
                f"{{{{instance}}}} {text}",
            )
            for name, text in (("entries", "written"), ("dropped", "dropped"))
        ],
        "",
        width=8,
    )
    yield graph(
        "CPU of the daemon",
        "percentunit",
        [
            target(
                f"rate(process_cpu_seconds_total{{{OF_HOSTS}}}[$__rate_interval]) {OF_DNSPROBE}",
                "{{instance}}",
            )
        ],
        "Share of one CPU. The time of the BPF programs counts for the processes that ask.",
        width=8,
    )
    yield graph(
        "Memory of the daemon",
        "bytes",
        [target(f"process_resident_memory_bytes{{{OF_HOSTS}}} {OF_DNSPROBE}", "{{instance}}")],
        "Resident memory, without the BPF maps in the kernel.",
        width=8,
    )


def row(title: str) -> Json:
    """Return the headline of the panels that follow it."""
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": COLUMNS, "h": 1}}


def placed(panels: Sequence[Json]) -> list[Json]:
    """Return the panels with their ids and positions."""
    done: list[Json] = []
    x = y = height = 0
    for number_, one in enumerate(panels, 1):
        size = one["gridPos"]
        if x + size["w"] > COLUMNS:
            x, y, height = 0, y + height, 0
        done.append({**one, "id": number_, "gridPos": {**size, "x": x, "y": y}})
        x, height = x + size["w"], max(height, size["h"])
    return done


def choice(name: str, label: str, query: str) -> Json:
    """Return a variable that offers the values of a label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
    }


def variables() -> list[Json]:
    """Return the variables at the top."""
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
        | {"refresh": 1, "multi": False, "includeAll": False, "current": {}, "options": [], "hide": 0},
        choice("instance", "Host", "label_values(dnsprobe_build_info, instance)"),
        choice("domain", "Domain", f"label_values(dnsprobe_queries_total{{{OF_HOSTS}}}, domain)"),
        choice("unit", "Unit", f'label_values(dnsprobe_queries_total{{{OF_HOSTS}, domain=~"$domain"}}, unit)'),
        choice("to", "Server", f"label_values(dnsprobe_queries_total{{{OF_HOSTS}}}, to)"),
    ]


def dashboard() -> Json:
    """Return the whole dashboard."""
    return {
        "uid": "dnsprobe",
        "title": "dnsprobe",
        "description": "Which process, with which ancestors, asks for which DNS name.",
        "tags": ["dns", "dnsprobe"],
        "id": None,
        "version": 1,
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "timezone": "",
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "1m",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": variables()},
        "panels": placed([row("Queries"), *queries(), row("Answers"), *answers(), row("dnsprobe itself"), *health()]),
    }


def text() -> str:
    """Return the content of the file."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PLACE.write_text(text(), encoding="utf-8")
