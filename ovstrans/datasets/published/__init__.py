"""The published datasets: where they lie on disk, how their labels are encoded, and reading them.

`registry` knows them by name and finds them; `ade`, `coco`, `pascal`, `roads` and `videos` say of each what there is,
in the terms of `layouts`, `pairing`, `encodings` and `panoptic`; `dataset` reads a split and `prepare` converts one.
"""
