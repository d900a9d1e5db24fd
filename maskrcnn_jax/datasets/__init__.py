"""What a data set is on disk: COCO annotations and records."""
