#!/usr/bin/env python3
"""Tests that the rules and the dashboard fit the program, with a Prometheus that scrapes it: test.py EVECHO."""

import contextlib
import json
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).parent
EVECHO = sys.argv[1]
DEADLINE = 120
SAMPLES = {"histogram": ("_bucket", "_sum", "_count")}
VARIABLES = {"$__rate_interval": "1m", "$job": "evecho", "$instance": ".+"}


def section(heading):
    text = (HERE / "../../docs/reference.md").read_text()
    return re.search(rf"^## {heading}$(.*?)^## ", text, re.M | re.S)[1]


def documented():
    """The names of all samples."""
    text = section("Counters and metrics")
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|info|histogram) \|", text, re.M)
    # Beside the name of a counter or gauge is the metric.
    rows += [(name, "") for name in re.findall(r"^\| `\w+` \| `(\w+)", text, re.M)]
    return {name + suffix for name, kind in rows for suffix in SAMPLES.get(kind, ("",))}


def queries():
    """What each panel of the dashboard asks, with values for its variables."""
    dashboard = json.loads((HERE / "dashboard.json").read_text())
    panels = dashboard["panels"]
    identifiers = [panel["id"] for panel in panels]
    assert len(set(identifiers)) == len(identifiers), identifiers
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["title"] and panel["description"] and panel["targets"], panel
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, target
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression, expression
            yield expression


def names_agree():
    """The rules, their tests and the document have the same alerts; and all metrics exist."""
    rules, tests = ((HERE / name).read_text() for name in ("alerts.yml", "alerts.test.yml"))
    alerts = re.findall(r"- alert: (\w+)", rules)
    tested = re.findall(r"alertname: (\w+)\n.*\n +exp_alerts:( \[\])?", tests)
    # Each where it fires, and where it does not.
    assert sorted(tested) == sorted((alert, quiet) for alert in alerts for quiet in ("", " []")), tested
    assert re.findall(r"^\| `(Evecho\w+)` \|", section("Alerts"), re.M) == alerts
    known = documented()
    assert len(known) > 30, known
    for text in (rules, tests, *queries()):
        used = set(re.findall(r"\b(?:evecho|process)_\w+", text))
        assert used <= known, used - known
    return alerts, re.findall(r'\w+\{reason="\w+"\}', rules)


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@contextlib.contextmanager
def running(*command):
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


class Prometheus:
    def __init__(self, port):
        self.api = f"http://127.0.0.1:{port}/api/v1/"

    def get(self, path, **fields):
        with urllib.request.urlopen(self.api + path + "?" + urllib.parse.urlencode(fields)) as answer:
            return json.load(answer)["data"]

    def wait_for(self, what, reached):
        end = time.monotonic() + DEADLINE
        while True:
            with contextlib.suppress(ConnectionError, urllib.error.URLError):
                if reached():
                    return
            assert time.monotonic() < end, what
            time.sleep(0.1)


def configure(folder, target):
    """The example, but for one server and a scrape each second."""
    config = (HERE / "prometheus.yml").read_text()
    config = config.replace("127.0.0.1:12100", target).replace("15s", "1s")
    (folder / "prometheus.yml").write_text(config)
    (folder / "alerts.yml").write_text((HERE / "alerts.yml").read_text())


def main():
    alerts, by_reason = names_agree()
    here = ("--bind", "127.0.0.1", "--port", "0", "--metrics", "127.0.0.1:0")
    with running(EVECHO, *here) as evecho, tempfile.TemporaryDirectory() as folder:
        metrics = next(line for line in evecho.stderr if "metrics on http://" in line)
        folder, port = pathlib.Path(folder), free_port()
        configure(folder, re.search(r"http://([\d.:]+)", metrics)[1])
        options = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data")
        with running("prometheus", "--log.level=error", *options, f"--web.listen-address=127.0.0.1:{port}"):
            prometheus = Prometheus(port)
            # A rate needs two scrapes. A query that cannot be parsed is an HTTP error.
            for query in (*queries(), *by_reason):
                prometheus.wait_for(query, lambda: prometheus.get("query", query=query)["result"])
            rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
            assert [rule["name"] for rule in rules] == alerts, rules
            prometheus.wait_for("all rules are evaluated", lambda: all(
                rule["health"] == "ok" for group in prometheus.get("rules")["groups"] for rule in group["rules"]))
            assert not prometheus.get("alerts")["alerts"], "nothing is wrong"
    print(f"{len(alerts)} alerts, {len([*queries()])} queries")


main()
