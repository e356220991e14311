"""A site on localhost, for those whose browser does not open files."""

from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    """Files of one folder, for requests that mean this machine."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".webp": "image/webp"}

    def send_head(self) -> Any:
        # A foreign page can point its own name at 127.0.0.1; it cannot change what the browser calls it.
        name = self.headers.get("Host", "").rpartition(":")[0]
        if name not in (HOST, "localhost"):
            self.send_error(403, "this server answers for localhost only")
            return None
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request is no message for the user."""


def make_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of a folder on 127.0.0.1; port 0 takes a free one."""
    return ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(folder)))


def serve(folder: Path, tell: Callable[[str], None], port: int = 0) -> None:
    """Serve until interrupted; `tell` gets the address."""
    with make_server(folder, port) as server:
        tell(f"http://{HOST}:{server.server_port}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
