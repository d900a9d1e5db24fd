"""Operations of Mask R-CNN: arrays in, arrays out."""
