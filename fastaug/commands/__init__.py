"""What users run: each file is one command, `fastaug NAME`, with `main(argv) -> exit code`. Nobody imports this room."""
