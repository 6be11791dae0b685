"""Files of other programs, in and out: detectron2, FC-CLIP, GKC, OpenTrans, torch's pruning, open_clip."""
