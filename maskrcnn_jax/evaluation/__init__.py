"""COCO results of detections, and the 24 COCO numbers of results."""
