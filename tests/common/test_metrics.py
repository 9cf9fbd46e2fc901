"""The metrics: bounded labels, and every place that names one knows what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info
from prometheus_client.metrics import MetricWrapperBase

from services.common import metrics
from services.common.metrics import Bounded, Names

ROOT = Path(metrics.__file__).parent.parent.parent
KINDS = {Counter: "counter", Gauge: "gauge", Histogram: "histogram", Info: "info"}
ENDINGS = {"counter": "_total", "info": "_info", "gauge": "", "histogram": ""}
NAME = re.compile(r"\b((?:stillhouse|grpc_server|process|python)_[a-z0-9_]+)\b")


def exported() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels of every metric of ours by its name on the page."""
    found = {}
    for one in vars(metrics).values():
        metric = one.metric if isinstance(one, Bounded) else one
        if isinstance(metric, MetricWrapperBase):
            kind = KINDS[type(metric)]
            found[metric._name + ENDINGS[kind]] = (kind, tuple(metric._labelnames))
    labels = ("service", "version", "device")
    return {**found, "stillhouse_service_info": ("info", labels)}


def series() -> set[str]:
    """Every name that a page can have, with those of the process and of Python."""
    found = {sample.name for family in REGISTRY.collect() for sample in family.samples}
    for name, (kind, _) in exported().items():
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found |= {name + part for part in parts}
    return found


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels by name, as the table of docs/metrics.md has them."""
    found = {}
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6 and re.fullmatch(r"`(stillhouse|grpc_server)_[a-z_]+`", cells[1]):
            found[cells[1].strip("`")] = (cells[2], tuple(re.findall(r"`(\w+)`", cells[3])))
    return found


def test_every_metric_is_documented_and_the_other_way_round() -> None:
    assert documented() == exported()


@pytest.mark.parametrize("path", ["dashboards/stillhouse.json", "alerts/stillhouse.yaml"])
def test_dashboard_and_alerts_ask_for_what_there_is(path: str) -> None:
    text = (ROOT / "deploy" / path).read_text()
    queries = _expressions(json.loads(text) if path.endswith("json") else yaml.safe_load(text))
    assert len(queries) > 5
    named = {name for query in queries for name in NAME.findall(query)}
    assert named
    assert named <= series()
    labels = {label for _, found in exported().values() for label in found}
    for query in queries:
        promql_parser.parse(query.replace("$__rate_interval", "5m"))
        asked = re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", query)
        grouped = [x for part in re.findall(r"by \(([^)]*)\)", query) for x in part.split(",")]
        rest = {one.strip() for one in (*asked, *grouped)} - {"le", "instance", "job"}
        assert rest <= labels, query


def _expressions(value: object) -> list[str]:
    """Every PromQL expression of a dashboard or of rules, and its queries for variables."""
    if isinstance(value, dict):
        own = [value["expr"]] if isinstance(value.get("expr"), str) else []
        return own + [found for inner in value.values() for found in _expressions(inner)]
    if isinstance(value, list):
        return [found for inner in value for found in _expressions(inner)]
    return []


def test_documents_name_no_metric_that_there_is_not() -> None:
    for name in ("metrics.md", "observability.md"):
        named = set(NAME.findall((ROOT / "docs" / name).read_text()))
        assert {one for one in named if not one.endswith("_")} <= series() | set(exported())


def test_labels_from_outside_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(metrics._NAMES, "project", Names(2))
    counter = metrics._counter("stillhouse_test_things", "Test.", ["project", "work"])
    try:
        for project in ("a", "b", "c", "d", "a"):
            counter.labels(project, "online").inc()
        found = {
            s.labels["project"]: s.value
            for s in next(iter(counter.metric.collect())).samples
            if s.name.endswith("_total")
        }
        assert found == {"a": 2, "b": 1, "other": 2}
    finally:
        REGISTRY.unregister(counter.metric)


def test_an_unloaded_model_leaves_and_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(1)
    for metric in (metrics.QUEUE_ITEMS, metrics.BATCH_ITEMS):
        monkeypatch.setattr(metric, "_names", [names])
    monkeypatch.setitem(metrics._NAMES, "model", names)
    metrics.BATCH_ITEMS.labels("goes away").observe(3)
    assert names.bounded("another") == "other"
    metrics.forget_model("goes away")
    value = REGISTRY.get_sample_value
    assert value("stillhouse_batch_items_count", {"model": "goes away"}) is None
    assert names.bounded("another") == "another"
