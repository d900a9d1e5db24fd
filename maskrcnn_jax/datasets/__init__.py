"""Data sets of users: labels, images and masks, record files, checks."""
