"""Datasets: images with label maps, panoptic segments and captions.

`catalog` opens a dataset by name. There are three kinds: a user's own folder (`folder`, described by a `dataset.toml`,
see `description`), the published datasets (`published`) and generated images (`scenes`). All of them yield a `Sample`
(`sample`). `augment` transforms samples, `segments` turns them into panoptic training targets, and `loading` makes
batches. Image files are found and read by `images`, which opens them through `pictures`. `check` looks for broken or
missing files, and `label_counts` for label values that make scores say little.
"""
