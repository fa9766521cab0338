"""Serves the local AWS on loopback, in threads of the present process."""

import threading
from types import TracebackType
from typing import Any, Self

import structlog
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from localsuite.aws.front import LocalAwsFront
from localsuite.aws.region import Region
from localsuite.aws.tiers import DEFAULT_CLUSTER

__all__ = ["LocalAwsServer"]

log = structlog.get_logger(__name__)


class _Handler(WSGIRequestHandler):
    """HTTP/1.1 with keep-alive, one segment per answer, quiet."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together; unbuffered, each answer costs a delayed ACK
    disable_nagle_algorithm = True
    timeout = 120  # an idle keep-alive connection gives its thread back

    def handle_expect_100(self) -> bool:
        """Sends the answer that clients wait for before they send an S3 object."""
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Says nothing: calls are the caller's to log."""

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        """Sends what werkzeug has to say to the structured log."""
        log.warning("http_server", level=type, message=message % args if args else message)


class LocalAwsServer:
    """One running local AWS; a context manager.

        with LocalAwsServer(Region(seed=7, time_compression=20.0)) as server:
            boto3.client("autoscaling", endpoint_url=server.endpoint, ...)

    With `moving=False` nothing happens by itself: time moves when a call comes in, which suits a
    test with a clock of its own.
    """

    def __init__(
        self,
        region: Region,
        *,
        port: int = 0,
        cluster: str = DEFAULT_CLUSTER,
        moving: bool = True,
    ) -> None:
        self.region = region
        self.front = LocalAwsFront(region, cluster=cluster)
        self._port = port
        self._moving = moving
        self._stop = threading.Event()
        self._server: BaseWSGIServer | None = None
        self._threads: list[threading.Thread] = []

    @property
    def endpoint(self) -> str:
        """The address for `endpoint_url`. Raises RuntimeError before start."""
        if self._server is None:
            raise RuntimeError("the server has not been started")
        return f"http://127.0.0.1:{self._server.port}"

    def start(self) -> Self:
        """Listens and returns. Raises OSError when the port is taken."""
        try:
            self._server = make_server(
                "127.0.0.1", self._port, self.front, threaded=True, request_handler=_Handler
            )
        except SystemExit as error:  # werkzeug's way to say that the port is taken
            raise OSError(f"port {self._port} on 127.0.0.1 is in use") from error
        self._threads = [threading.Thread(target=self._server.serve_forever, args=(0.05,))]
        if self._moving:
            self._threads.append(threading.Thread(target=self.region.run, args=(self._stop,)))
        for thread in self._threads:
            thread.daemon = True
            thread.start()
        return self

    def stop(self) -> None:
        """Stops listening and lets waiting readers go. No-op when not started."""
        server, self._server = self._server, None
        if server is None:
            return
        self._stop.set()
        self.region.wake()
        self.region.feed.close()
        server.shutdown()
        server.server_close()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
