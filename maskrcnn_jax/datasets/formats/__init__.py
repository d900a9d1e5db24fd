"""Label formats other than COCO's, read as what a COCO JSON would hold."""
