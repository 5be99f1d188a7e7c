"""Runs sessions of generated clients against a built antre, all at once.

    python run.py ANTRE "NAME: COMMAND"...

Each command is given the URL of an antre, that of another one whose database is locked, and a product of that one.
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
import urllib.request

# Far more than a session takes, so that a slow machine fails nothing.
PATIENCE = 120


@contextlib.contextmanager
def running(antre, directory, **settings):
    """An antre in a directory of its own; its URL. A program that fails is shown with its log."""
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
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return json.load(opener.open(request, timeout=30))["data"]


@contextlib.contextmanager
def locked(database):
    """Holds the write lock of an SQLite file, as a backup that takes too long would."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


def main(antre, sessions):
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(running(antre, directory / "free"))
        stuck = stack.enter_context(running(antre, directory / "stuck", ORDER_TIMEOUT="200ms"))
        product = call("POST", f"{stuck}/api/products", {"name": "Kaos Polos"})["id"]
        call("PUT", f"{stuck}/api/products/{product}/inventory", {"stock": 1000})
        stack.enter_context(locked(directory / "stuck" / "antre.db"))
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        running_sessions = []
        for session in sessions:
            name, command = session.split(": ", 1)
            arguments = [*shlex.split(command), url, stuck, str(product)]
            process = subprocess.Popen(
                arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            running_sessions.append((name, process))
        failed = False
        for name, process in running_sessions:
            try:
                output, _ = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
            verdict = "kept up a whole session" if process.returncode == 0 else f"failed:\n{output}"
            print(f"{name}: {verdict}")
            failed |= process.returncode != 0
        if failed:
            for log in directory.glob("*/log"):
                print(f"--- what antre logged ({log.parent.name})\n{log.read_text()}")
            sys.exit(1)


main(sys.argv[1], sys.argv[2:])
