"""Where the collector serves its pages for Prometheus."""

from dataclasses import dataclass

from servicekit.settings import setting

__all__ = ["PrometheusSettings", "parse_prometheus_address"]


def parse_prometheus_address(text: str) -> tuple[str, int] | None:
    """Return host and port of `host:port`, `:port` (on loopback) or nothing.

    Raises ValueError saying what is allowed.
    """
    if not text:
        return None
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be host:port, for example 127.0.0.1:9400; :9400 is on loopback")
    return host.strip("[]") or "127.0.0.1", int(port)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSettings:
    """The pages for Prometheus."""

    address: tuple[str, int] | None = setting(
        "GPU_METRICS_PROMETHEUS_ADDRESS",
        default=None,
        parse=parse_prometheus_address,
        help="host:port of the pages for Prometheus; :port is on loopback, empty serves none",
    )
