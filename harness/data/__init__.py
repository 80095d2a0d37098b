"""From documents to tokens, batches and the n-gram floor; numpy only, so that nothing here waits for torch.

Document borders are kept all the way: splits are by document, windows never cross a border, and perplexity
against context is asked of whole documents. See `documents`, `tokens`, `batches` and `ngram`, in that order.
"""
