"""Generation: options, processing of scores, sampling, beam search, and the steps of each target with caches on its device."""
