"""Speed, measured: each case is compiled first, warmed up, and repeated."""
