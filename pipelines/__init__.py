"""What the verbs of the command line do. Here and in `cluster` is Ray, here alone MLflow."""

from contextlib import suppress

# For the whole process, so it is done where the process is ours, Ray's workers among them, and not in `msrcnn`, whose
# host may want pillow's limit for other images. It is against bombs; here no image is decoded that has not the size
# stated in its annotation file, or at most the pixels that a verb takes.
with suppress(ImportError):  # a job in an environment without our packages says so, in `packages_notice`
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
