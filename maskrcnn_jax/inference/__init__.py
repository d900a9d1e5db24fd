"""Detection in images that belong to no data set."""
