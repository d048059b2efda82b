"""Text from a trained model: sampling, the cache of keys and values, the decoder, the engine for many requests."""
