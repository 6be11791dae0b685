"""Vocabularies: classes with their synonyms, prompts and colours, and the words of captions.

`vocabulary` holds the class `Vocabulary`, `files` reads it from files, and `catalog` knows the vocabularies of
published datasets, whose files are in `published/`. `prompts` chooses the class names and templates that prompts are
made from. `nouns` and `synonyms` look words up in the extracts of WordNet in `wordnet/`.
"""
