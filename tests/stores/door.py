"""Object stores for tests: real HTTP servers of our own, and a door that can be shut."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Door:
    """What a proxy lets through, and what it saw."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.refused: dict[str, int] = {}
        """HTTP methods that are answered with this status."""
        self.seen: list[str] = []


@contextmanager
def door(host: str, port: int) -> Iterator[tuple[Door, str]]:
    """Put a proxy before an S3 server; yield its controls and its URL."""
    controls = Door(host, port)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            controls.seen.append(f"{self.command} {self.path}")
            if self.command in controls.refused:
                status = controls.refused[self.command]
                code = "AccessDenied" if status == 403 else "InternalError"
                text = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                self.respond(status, {"Content-Type": "application/xml"}, text)
                return
            connection = http.client.HTTPConnection(controls.host, controls.port, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            reply = connection.getresponse()
            self.respond(reply.status, dict(reply.headers), reply.read())
            connection.close()

        def respond(self, status: int, headers: dict[str, str], text: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else len(text)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield controls, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
