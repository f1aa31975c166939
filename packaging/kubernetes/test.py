#!/usr/bin/env python3
"""Tests that the manifests fit the program: test.py EVECHO."""

import os
import pathlib
import re
import subprocess
import sys

import yaml

HERE = pathlib.Path(__file__).parent
EVECHO = sys.argv[1]


def load(name):
    return yaml.safe_load((HERE / name).read_text())


def ours(command, port):
    """The command with this program, and this port, instead of the image's."""
    command = [word.replace("12000", port) for word in command]
    return [EVECHO if word == "/usr/bin/evecho" else word for word in command]


def listed(kustomization):
    """The resources of a kustomization are files that exist, and all that there are."""
    folder = (HERE / kustomization).parent
    there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(load(kustomization)["resources"]) == there, kustomization


def start(environment):
    """A server with the settings of the Deployment, on a free port, and that port."""
    environment = os.environ | environment | {"EVECHO_PORT": "0", "EVECHO_BIND": "127.0.0.1"}
    server = subprocess.Popen([EVECHO], env=environment, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", line):
            return server, found[1]
    sys.exit("the server does not listen")


def main():
    listed("kustomization.yaml")
    listed("load/kustomization.yaml")
    pod = load("deployment.yaml")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    server, port = start(environment)
    ready = ours(container["readinessProbe"]["exec"]["command"], port)
    assert subprocess.run(ready, stdout=subprocess.DEVNULL).returncode == 0, ready
    load_args = load("load/job.yaml")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert load_args[1] == "evecho:12000", "the Service"
    # The same in less time.
    report = [EVECHO, "load", f"127.0.0.1:{port}", *("100ms" if word.endswith("0s") else word for word in load_args[2:])]
    reports = [subprocess.run(report, capture_output=True) for _ in range(2)]
    assert all(report.returncode == 0 for report in reports), reports
    # Two pods' output at once, as kubectl logs has it.
    logs = b"".join(report.stdout for report in reports)
    merged = subprocess.run([EVECHO, "merge", "-"], input=logs, capture_output=True)
    assert merged.returncode == 0, merged
    server.terminate()
    assert server.wait() == 0
    grace = pod["terminationGracePeriodSeconds"]
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = int(environment.get("EVECHO_DRAIN_TIMEOUT", "8s").rstrip("s"))
    delay = int(environment.get("EVECHO_DRAIN_DELAY", "0").rstrip("s"))
    assert grace > sleep + delay + drain, "the grace period is too short"


main()
