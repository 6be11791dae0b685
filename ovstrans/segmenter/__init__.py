"""Using a trained model: segmenting images by any class names, one image or folders of them."""
