"""One command per analysis: opens a run, calls pure functions, prints a table, writes numbers and figures."""
