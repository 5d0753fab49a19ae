"""Prints the queries of Grafana dashboards as a Prometheus rules file, so that `promtool check rules` can parse every one of them."""

import json
import sys


def queries(panel):
    """The PromQL expressions of a panel and of the panels inside it."""
    for target in panel.get("targets", []):
        yield panel["title"], target["expr"]
    for inner in panel.get("panels", []):
        yield from queries(inner)


def rules(paths):
    """One recording rule for each query; Grafana's variables are given a value, as Grafana does before it asks."""
    for path in paths:
        with open(path, encoding="utf-8") as file:
            dashboard = json.load(file)
        for panel in dashboard["panels"]:
            for title, expression in queries(panel):
                expression = expression.replace("$__rate_interval", "5m").replace("$agent", ".*").replace("$backend", ".*")
                if "$" in expression:
                    sys.exit(f"{path}: panel `{title}` uses a variable that is not known here: {expression}")
                yield {"record": "dashboard:query", "labels": {"panel": title, "query": expression}, "expr": expression}


# JSON is YAML too, and promtool reads YAML.
print(json.dumps({"groups": [{"name": "dashboards", "rules": list(rules(sys.argv[1:]))}]}))
