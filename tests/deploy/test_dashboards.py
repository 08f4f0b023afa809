"""The dashboard and the alerts: every metric in them is one that the code tells, and every alert leads to a page."""

import json
import re
from functools import cache
from typing import Any

import yaml

from tests.deploy.known import DEPLOY, metric_names, metrics_in


@cache
def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "slidereason.json").read_text(encoding="utf-8"))


@cache
def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def test_every_metric_of_the_dashboard_and_the_alerts_exists() -> None:
    known = metric_names()
    assert len(known) > 25
    for expression in [*expressions(), *(rule["expr"] for rule in rules())]:
        assert metrics_in(expression), expression
        assert metrics_in(expression) <= known, expression


def test_every_metric_but_buckets_and_processes_is_on_the_dashboard() -> None:
    shown = {name for expression in expressions() for name in metrics_in(expression)}
    stems = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown}
    ours = {name for name in metric_names() if name.startswith("slidereason_")}
    assert {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in ours} - stems == set()


def test_labels_are_those_of_the_metrics() -> None:
    text = json.dumps(expressions()) + json.dumps([rule["expr"] for rule in rules()])
    labels = {label.strip() for found in re.findall(r"by \(([^)]*)\)", text) for label in found.split(",")}
    assert labels == {"model", "revision", "status", "code", "reason", "outcome", "stage", "le", "route", "to", "state"}
    from worker.metrics import OUTCOMES

    assert set(re.findall(r'outcome=\\"(\w+)\\"', text)) <= set(OUTCOMES)


def test_panels_have_ids_of_their_own_a_place_and_the_chosen_data_source() -> None:
    panels = dashboard()["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids) > 20
    (variable,) = dashboard()["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        for part in (panel, *panel.get("targets", ())) if panel["type"] != "row" else ():
            assert part["datasource"]["uid"] == f"${{{variable['name']}}}", panel["title"]


def test_every_alert_says_what_it_means_and_leads_to_a_heading_of_the_runbook() -> None:
    runbook = (DEPLOY / "runbook.md").read_text(encoding="utf-8")
    headings = {re.sub(r"\W+", "-", line.lower()) for line in re.findall(r"^## (.+)$", runbook, re.MULTILINE)}
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["runbook"] in headings, rule["alert"]
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
