"""Zero-shot recall: does a model still know what stood once in its context, by length and depth?"""
