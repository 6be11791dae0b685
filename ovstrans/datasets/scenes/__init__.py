"""`scenes`: a generated dataset. `dataset` composes the images and captions, `drawing` draws them."""
