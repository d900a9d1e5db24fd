"""Arrays in, arrays out: the operations that Mask R-CNN is made of."""
