"""The stages, one file a verb: shard, train, evaluate. Ray and MLflow live here and nowhere else."""

from PIL import Image

# For the whole process, so it is done where the process is ours, Ray's workers among them, and not in `msrcnn`, whose
# host may want pillow's limit for other images. It is against bombs; here no image is decoded that has not the size
# stated in its annotation file, or at most the pixels that a verb takes.
Image.MAX_IMAGE_PIXELS = None
