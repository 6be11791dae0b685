"""The costs that OpenTrans prints, computed anew: `figures` are what it prints, `rows` each beside ours.

`counts` has the parts that its conventions are made of, `truth` what the same models take by the one counter used
everywhere else, `released_deeplab` the model of the released code that one published row needs.
"""
