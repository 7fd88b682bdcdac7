"""Samples as Prometheus' text. Importing this takes 100 ms: not before somebody asks, nor on the loop."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from holdoverd.metrics.counts import Histogram
from holdoverd.metrics.table import METRICS, PREFIX, Samples, check

__all__ = ["CONTENT_TYPE_LATEST", "render"]


def render(samples: Samples) -> bytes:
    """The text, metrics in the order of the table. One without a sample is left out."""
    check(samples)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(samples))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        for row in METRICS:
            values = self._samples.get(row.name)
            if not values:
                continue
            name = PREFIX + row.name
            if row.kind == "histogram":
                histogram = HistogramMetricFamily(name, row.help, labels=row.labels)
                for labels, value in values.items():
                    assert isinstance(value, Histogram), f"{row.name} is a histogram"
                    bounds = [*map(repr, value.bounds), "+Inf"]
                    buckets = list(zip(bounds, value.cumulated(), strict=True))
                    histogram.add_metric(labels, buckets, value.total)
                yield histogram
                continue
            kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            family = kind(name, row.help, labels=row.labels)
            for labels, value in values.items():
                assert not isinstance(value, Histogram), f"{row.name} is a {row.kind}"
                family.add_metric(labels, value)
            yield family
