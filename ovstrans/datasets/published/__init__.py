"""Published datasets, read from the folders that their archives unpack to or that detectron2's scripts prepare.

`registry` knows the datasets by name and locates them on disk. `ade`, `coco`, `pascal`, `roads` and `videos` define
them in terms of `layouts` (folders), `places` (where else archives are unpacked), `pairing` (which label file belongs
to an image), `encodings` (what the numbers in label files mean) and `panoptic` (segments in COCO's format). `dataset`
reads a split, and `prepare` converts one.
"""
