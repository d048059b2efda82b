"""How well a model predicts files of text: loss and perplexity over fine-tuning data, plain text and indexed data."""
