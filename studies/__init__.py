"""Studies: one file is one claim from the literature, one figure and one verdict."""
