"""How the counters of the literature count: `thop`, `ptflops` and `fvcore` as rules on meta tensors.

`upstream` says where the modules of the released code differ from ours, as such counters see it.
"""
