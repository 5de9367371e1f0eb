"""What a run logged: shared by the tests."""

from dreamer_jax.training.logging import read_metrics


def lines(folder):
    """metrics.jsonl without the measured times."""
    records = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in records]
