"""What users run: every file is a command, `fastaug NAME`, with `main(argv)` that gives the exit code."""
