"""From documents to tokens, batches and the n-gram floor; numpy only, so that nothing here waits for torch.

Document borders are kept all the way: splits are by document, windows never cross a border unless they are to
(`data.pack`), and perplexity against context is asked of whole documents. In the order of the work:

    sources, jsonl, hub, audio   the parts of a corpus, each read from its beginning, nothing before it is asked for
    documents                    what counts as one, and which are held out
    tokenizer, vocabulary        bytes, or any fast tokenizer: token ids, and the bytes of each token
    building, writing, shard     blocks of documents become shards in several processes, once, resumably
    corpus, tokens               the store of a config: found or made; documents by number, memory-mapped
    batches                      training windows as a function of (seed, step); windows, permutation: at any size
    ngram                        the floor

Sized for trillions of tokens: beside 2 bytes a token the index takes some 30 bytes a document, on disk alone. A
process keeps a few numbers a shard (a million tokens or more each) and maps 256 shards at a time; it draws a window in
O(log documents of a shard). What grows with the corpus is one pass over the ends of the documents (8 bytes each) when
a training begins, and none with `data.pack`.
"""
