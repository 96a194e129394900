"""Mask Scoring R-CNN (Huang et al., CVPR 2019): the method, without any cluster.

This package imports torch, torchvision, numpy, pycocotools and hotcoco, and nothing of Ray or MLflow: those live
in `pipelines`. Importing `msrcnn` itself is cheap; torch comes with the modules that need it.
"""

__version__ = "0.1.0"
