"""Segment an image with classes of your own: python docs/examples/predict.py RUN IMAGE"""

import sys

import ovstrans

# --8<-- [start:code]
segmenter = ovstrans.Segmenter.load(sys.argv[1])  # a run folder or a checkpoint
found = segmenter.segment(sys.argv[2], "a red star, a blue circle, grass, sand")
print(found)  # which classes, on how much of the image
print(found.labels.shape, found.labels[0, 0])  # class index of every pixel
found.overlay().save("overlay.png")  # the image under its classes
# --8<-- [end:code]
