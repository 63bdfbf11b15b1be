"""The parts of bench_meta.py: what is trained, one-step methods of ours and of others, the frontier, sample weights."""
