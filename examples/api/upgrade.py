#!/usr/bin/env python3
"""Changes a layer by a command, and takes the changes back if the command fails.

Usage: upgrade.py LAYER COMMAND [ARGUMENT...]

Takes a snapshot of the layer through Cowshed's API, and runs the command. If the command succeeds, it prints the changed
paths, and the snapshot stays. If the command fails, the layer is rolled back to the snapshot. A layer in use cannot be
rolled back: stop its container, and run "cowshed rollback".

    upgrade.py docker:web docker exec web apt-get -y upgrade

COWSHED_API is the socket of the API, by default /run/cowshed/api.sock.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.parse


class Connection(http.client.HTTPConnection):
    """A connection to a unix socket."""

    def __init__(self, path):
        super().__init__("cowshed")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)


class APIError(Exception):
    """An error that the API answers."""

    def __init__(self, answer):
        super().__init__(answer["message"])
        self.kind = answer["kind"]
        self.advice = answer.get("advice", "")


class API:
    """The API behind a unix socket."""

    def __init__(self, path):
        self.path = path

    def call(self, method, path, body=None):
        """Sends a request, and returns the JSON of the answer, None if it has none."""
        connection = Connection(self.path)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            data = json.dumps(body) if body is not None else None
            connection.request(method, "/v1" + path, data, headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            raise APIError(json.loads(answer))
        return json.loads(answer) if answer else None


def layer_path(layer, *parts):
    """The path of a layer, whose name may have any character."""
    return "/".join(["/layers", urllib.parse.quote(layer, safe=":@"), *parts])


def run(command):
    """Returns the exit code of a command, and 127 if it cannot be run."""
    # Ctrl-C reaches the command too. The command ends by it, and its exit code decides.
    former = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return subprocess.run(command, check=False).returncode
    except OSError as error:
        print(f"upgrade.py: {error}", file=sys.stderr)
        return 127
    finally:
        signal.signal(signal.SIGINT, former)


def upgrade(api, layer, command):
    """Returns the exit code."""
    message = {"message": "before " + " ".join(command)}
    before = api.call("POST", layer_path(layer, "snapshots"), message)["name"]
    if run(command) != 0:
        print(f"upgrade.py: the command has failed: rolling {layer} back to {before}", file=sys.stderr)
        api.call("POST", layer_path(layer, "rollback"), {"snapshot": before})
        return 1
    since = urllib.parse.urlencode({"since": f"{layer}@{before}"})
    for change in api.call("GET", layer_path(layer, "changes") + "?" + since)["changes"]:
        print(change["kind"], change["path"])
    print(f"upgrade.py: snapshot {before} has the content of before", file=sys.stderr)
    return 0


def main():
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    api = API(os.environ.get("COWSHED_API", "/run/cowshed/api.sock"))
    try:
        return upgrade(api, sys.argv[1], sys.argv[2:])
    except APIError as error:
        print(f"upgrade.py: {error} ({error.kind})", file=sys.stderr)
        if error.advice:
            print(error.advice, file=sys.stderr)
        return 1
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"upgrade.py: {api.path}: {error}: does cowshed serve have the key api?", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
