"""The thin host side: loop, checkpoints, logs, evaluation."""
