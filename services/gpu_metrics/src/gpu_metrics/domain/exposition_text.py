"""How Prometheus' text formats write a metric's head and its labels.

Formats: OpenMetrics 1.0 (RFC draft, openmetrics.io), Prometheus text exposition 0.0.4
(prometheus.io/docs/instrumenting/exposition_formats).
"""

from collections.abc import Sequence

__all__ = ["escaped", "family", "label_text"]


def family(name: str, kind: str, unit: str, help_text: str, *, openmetrics: bool) -> list[str]:
    """Return the lines before a metric's samples; a counter's `name` is without `_total`."""
    if not openmetrics:
        # The older format names a counter by its series.
        series = f"{name}_total" if kind == "counter" else name
        kind = "gauge" if kind == "info" else kind
        return [f"# HELP {series} {help_text}", f"# TYPE {series} {kind}"]
    unit_line = [f"# UNIT {name} {unit}"] if unit else []
    return [f"# TYPE {name} {kind}", *unit_line, f"# HELP {name} {help_text}"]


def label_text(labels: Sequence[tuple[str, str]]) -> str:
    """Return labels as they stand between a series' braces."""
    return ",".join(f'{name}="{escaped(value)}"' for name, value in labels)


def escaped(value: str) -> str:
    """Return a label's value as it stands between its quotes."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
