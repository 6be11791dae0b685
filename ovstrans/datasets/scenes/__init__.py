"""`scenes`, generated data: the dataset, and the shapes, textures and captions that it draws from."""
