"""The costs that OpenTrans prints, computed anew: `bench --paper`.

`figures` holds the printed figures, `rows` computes each of them by the paper's convention. `counts` has the parts that
the conventions combine, `truth` the true costs of the same models by the counter used everywhere else, and
`released_deeplab` the model of the released code that one published row needs.
"""
