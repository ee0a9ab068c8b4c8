"""A judge on this machine that speaks as an OpenAI-compatible server does, and fails in the ways such servers fail."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHOWN = re.compile(r"<answer_A>\n(.*?)\n</answer_A>.*<answer_B>\n(.*?)\n</answer_B>", re.DOTALL)


class Judge:
    """Replies by `prefer(first, second)`, or `prefer(question)` without a pair, after the faults that were ordered."""

    def __init__(self, prefer):
        self.prefer = prefer
        self.faults = []
        """Each is used up by one request: a status with headers and text, `cut`, `no json`, `silent` (nothing comes),
        `drip` (it never ends), or a text to reply with.
        """
        self.asked = []
        self.keys = []
        self.usage = None
        """What it says of its tokens."""
        self.lock = threading.Lock()
        self.closing = threading.Event()

    def serve(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.asked.append(body)
            self.keys.append(handler.headers.get("Authorization"))
            fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, tuple):
            code, headers, text = fault
            return self._send(handler, code, text, headers)
        text = fault
        if fault == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", "500")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [{"message": {"content": "A')
            handler.wfile.flush()
            return handler.connection.close()
        if fault in ("silent", "drip"):
            return self._hang(handler, drips=fault == "drip")
        if fault == "no json":
            return self._send(handler, 200, "<html>busy</html>")
        if text is None:
            asked = body["messages"][1]["content"]
            two = SHOWN.search(asked)
            text = self.prefer(*two.groups()) if two else self.prefer(asked)
        return self._send(handler, 200, json.dumps({"choices": [{"message": {"content": text}}], "usage": self.usage}))

    def _hang(self, handler, drips):
        """Keep the connection, and say nothing on it; or a blank now and then."""
        if drips:
            handler.send_response(200)
            handler.send_header("Content-Length", "500")
            handler.end_headers()
        while not self.closing.wait(0.05):
            if drips:
                try:
                    handler.wfile.write(b" ")
                except OSError:
                    return

    def _send(self, handler, code, text, headers=()):
        data = text.encode()
        handler.send_response(code)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


@contextmanager
def endpoint(prefer):
    """The judge and its address, for the length of the block."""
    judge = Judge(prefer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            judge.serve(self) if self.path == "/v1/chat/completions" else self.send_error(404)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield judge, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        judge.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
