"""Looking inside: pure functions from (parameters, tokens) to arrays; figures; a command per analysis."""
