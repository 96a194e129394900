"""The numbers of an evaluation, computed from stored detections and the ground truth."""
