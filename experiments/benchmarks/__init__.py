"""One file a benchmark; `benchmark.py` beside this folder is their command line."""
