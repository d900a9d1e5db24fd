"""Plans of runs: compilation ahead of time, its costs, tables and charts."""
