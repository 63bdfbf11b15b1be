"""timm's training script, as far as its command line goes: its arguments, and the recipe that trains the same."""
