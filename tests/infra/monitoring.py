"""The queries of infra/monitoring/, as Grafana and Prometheus ask them."""

from __future__ import annotations

import json

from tests.infra.places import INFRA, documents

ALERTS_TEST = INFRA / "monitoring/alerts_test.yaml"
(_ALERTS,) = documents("monitoring/alerts.yaml")
RULES = [rule for group in _ALERTS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((INFRA / "monitoring/dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
# Panel and target -> query.
SHOWN = {
    f"{title} {target['refId']}": target["expr"]
    for title, panel in PANELS.items()
    for target in panel["targets"]
}


def filled(query: str, output: str = ".*", interval: str = "1m") -> str:
    """A query with Grafana's variables filled in."""
    for variable, value in (
        ("$__range", "6h"),
        ("$__rate_interval", interval),
        ("$output", output),
    ):
        query = query.replace(variable, value)
    return query
