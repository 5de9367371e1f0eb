"""What a run logged, and changes to its settings: shared by the tests."""

import json

from dreamer_jax.training.logging import read_metrics


def lines(folder):
    """metrics.jsonl without the measured times."""
    records = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in records]


def updates(folder):
    """The lines about updates, by step."""
    return {line["step"]: line for line in lines(folder) if "loss/actor" in line}


def set_cycles(folder, number):
    """As if the run had been asked for so many."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cycles": number}))
