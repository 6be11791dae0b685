"""English, offline: the nouns of captions, plurals, and synonyms of class names, from the extracts in `wordnet`."""
