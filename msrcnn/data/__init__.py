"""Where images and annotations come from: COCO files, the built-in data set, and the way to a batch."""
