"""Text from a trained model: the decoder, its cache of keys and values, sampling, the engine of many requests."""
