"""The command line: one typer command per verb; `main.main` maps errors to exit codes."""
