"""What the meta step costs and how good it is, `python -m benchmarks.meta`: what is trained,
one-step methods of ours and of others, the frontier, sample weights.
"""
