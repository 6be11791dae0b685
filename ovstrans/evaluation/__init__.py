"""Evaluation of a framework on labelled data: inference, mIoU, panoptic quality, video consistency."""
