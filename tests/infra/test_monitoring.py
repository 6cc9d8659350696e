"""infra/monitoring/: every query parses and asks for what workers really count.

What Prometheus answers to them while a job runs: tests/cluster/test_prometheus.py.
"""

from __future__ import annotations

import re
import subprocess
from itertools import combinations

import promql_parser as promql
import pytest

from pnp_batch.metrics import NAMES
from tests.infra.monitoring import ALERTS_TEST, DASHBOARD, PANELS, RULES, SHOWN, filled
from tests.infra.places import INFRA, ROOT, documents

METRICS = {f"ray_{name}" for name in NAMES}
OWN_LABELS = {
    "ray_pnp_batch_rows_failed_total": {"kind"},
    "ray_pnp_batch_inversions_total": {"origin"},
}
QUERIES = {**{rule["alert"]: rule["expr"] for rule in RULES}, **SHOWN}
PAGE = (ROOT / "docs/cluster.md").read_text()


def parsed(query):
    """A query's tree, Grafana's variables filled in."""
    return promql.parse(filled(query))


def asked(query):
    """The metrics that a query asks for, each with the labels that it is matched by."""
    found = {}

    def visit(node):
        if isinstance(node, promql.VectorSelector):
            labels = {matcher.name for matcher in node.matchers.matchers}
            found[node.name] = found.get(node.name, set()) | labels

    promql.walk(parsed(query), visit)
    return found


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_asks_for_metrics_and_labels_that_exist(name):
    metrics = asked(QUERIES[name])
    assert metrics, "no metric at all"
    assert set(metrics) <= METRICS
    for metric, labels in metrics.items():
        assert labels <= {"output"} | OWN_LABELS.get(metric, set())
    grouped = {
        label.strip()
        for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", QUERIES[name])
        for label in labels.split(",")
    }
    allowed = {"output"}.union(*(OWN_LABELS.get(metric, set()) for metric in metrics))
    assert "output" in grouped
    assert grouped <= allowed


def test_what_does_not_parse_is_noticed():
    with pytest.raises(ValueError, match="parenthesis"):
        parsed("sum by (output (rate(ray_pnp_batch_rows[5m]))")


def test_every_metric_is_shown():
    shown = {name for q in QUERIES.values() for name in re.findall(r"ray_pnp_batch_\w+", q)}
    assert shown == METRICS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_and_what_to_do(rule):
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"PnpBatch[A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert {"summary", "description", "runbook"} == set(rule["annotations"])
    assert "{{ $labels.output }}" in rule["annotations"]["summary"]
    assert re.fullmatch(r"\d+[mh]", rule.get("for", "0m"))
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"(?m)^#+ (.*)$", (ROOT / page).read_text())
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_page_has_every_alert_and_every_metric():
    assert set(re.findall(r"`(PnpBatch\w+)`", PAGE)) == {rule["alert"] for rule in RULES}
    assert set(re.findall(r"(?m)^\| `(ray_pnp_batch_\w+)`", PAGE)) == METRICS


def test_prometheus_reads_rays_list_of_nodes_and_the_alerts():
    (config,) = documents("monitoring/prometheus.yml")
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (job,) = config["scrape_configs"]
    (files,) = job["file_sd_configs"]
    assert files["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    assert [(INFRA / "monitoring" / name).exists() for name in config["rule_files"]] == [True]


@pytest.mark.long
def test_alerts_fire_on_what_they_are_for():
    ran = subprocess.run(["promtool", "test", "rules", ALERTS_TEST], check=False)
    assert ran.returncode == 0


def test_panels_can_be_read():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len(PANELS) == len(DASHBOARD["panels"]), "two panels of one title"
    for panel in PANELS.values():
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert '{output=~"$output"' in target["expr"]


def test_panels_do_not_overlap():
    for one, other in combinations([panel["gridPos"] for panel in PANELS.values()], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS.values())


def test_the_dashboard_asks_which_output():
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "output"}
    metric, label = re.fullmatch(
        r"label_values\((\w+), (\w+)\)", variables["output"]["query"]["query"]
    ).groups()
    assert metric in METRICS
    assert label == "output"
