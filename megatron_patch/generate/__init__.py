"""Text from a trained model: sampling, the cache of keys and values, the decoder, and the engine that runs many requests."""
