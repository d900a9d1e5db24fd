"""From detections to COCO results and the 24 COCO numbers."""
