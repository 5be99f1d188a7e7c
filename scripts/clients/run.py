"""Runs sessions of generated clients against a built antre, all at once.

    python run.py ANTRE "NAME: COMMAND"...

Each command is given the URL of an antre, that of another one whose database is locked, and a product of that one. Then
again with URLs of a later release, whose answers have fields that the contract does not name yet.
"""

import contextlib
import json
import os
import pathlib
import re
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Far more than a session takes, so that a slow machine fails nothing.
PATIENCE = 120

# Whatever proxy the surroundings name, the servers are on this machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def running(antre, directory, **settings):
    """Starts an antre in its own directory; returns its URL. A program that fails is shown with its log."""
    directory.mkdir()
    # Nothing of the surroundings reaches it: neither a setting nor somebody's .env.
    environment = {"LISTEN_ADDR": "127.0.0.1:0", "RUST_LOG": "warn", **settings}
    with open(directory / "log", "w") as log:
        process = subprocess.Popen(
            [antre, "serve"], cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        # It says what to try once it is open.
        found = next(filter(None, (re.search(r"curl (http://[^/]+)/", line) for line in process.stdout)), None)
        if found is None:
            sys.exit(f"antre ended before it was open:\n{(directory / 'log').read_text()}")
        yield found[1]
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def call(method, url, body):
    """The data of a call that must succeed."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method=method)
    return json.load(OPENER.open(request, timeout=30))["data"]


def grown(value):
    """A JSON value as a later release would answer it: with another field in every object."""
    if isinstance(value, dict):
        return {name: grown(field) for name, field in value.items()} | {"of_a_later_release": [1, None]}
    return [grown(item) for item in value] if isinstance(value, list) else value


@contextlib.contextmanager
def later_release(url):
    """The URL of a server that answers as this one does, and more."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            names = ("Content-Type", "Idempotency-Key", "Prefer")
            headers = {name: self.headers[name] for name in names if name in self.headers}
            request = urllib.request.Request(url + self.path, body or None, headers, method=self.command)
            try:
                answer = OPENER.open(request, timeout=30)
            except urllib.error.HTTPError as error:
                answer = error
            body = json.dumps(grown(json.load(answer))).encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextlib.contextmanager
def locked(database):
    """Holds the write lock of an SQLite file, as a backup that takes too long would."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


@contextlib.contextmanager
def stuck(antre, directory):
    """The URL of an antre whose database is locked, and a product that it has."""
    with running(antre, directory, ORDER_TIMEOUT="200ms") as url:
        product = call("POST", f"{url}/api/products", {"name": "Kaos Polos"})["id"]
        call("PUT", f"{url}/api/products/{product}/inventory", {"stock": 1000})
        with locked(directory / "antre.db"):
            yield url, product


def main(antre, sessions):
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        directory = pathlib.Path(enter(tempfile.TemporaryDirectory()))
        url = enter(running(antre, directory / "free"))
        later_url = enter(later_release(url))
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        started = []
        for number, session in enumerate(sessions):
            name, command = session.split(": ", 1)
            # One for each session: who creates a product there waits for the lock, one after the other.
            stuck_url, product = enter(stuck(antre, directory / f"stuck-{number}"))
            later_stuck_url = enter(later_release(stuck_url))
            for release, urls in ("", (url, stuck_url)), (", with a later release", (later_url, later_stuck_url)):
                process = subprocess.Popen(
                    [*shlex.split(command), *urls, str(product)],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                started.append((name + release, process))
        failed = False
        for name, process in started:
            try:
                output, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
            print(f"{name}: a whole session" if process.returncode == 0 else f"{name}: failed\n{output}")
            failed |= process.returncode != 0
        if failed:
            for log in sorted(directory.glob("*/log")):
                print(f"--- what antre logged ({log.parent.name})\n{log.read_text()}")
            sys.exit(1)


main(sys.argv[1], sys.argv[2:])
