"""Vocabularies: classes, the names that go into prompts, the sentences around them and the colours they are drawn in.

`catalog` opens one by name or file. The files of published datasets are in `published`.
"""
