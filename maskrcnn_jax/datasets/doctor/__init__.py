"""A data set is looked at before anything is trained on it."""
