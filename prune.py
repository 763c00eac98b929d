"""Channel pruning (paper 3.3; Eq. 3, 4): annealed sigmoid masks, sparsity loss, compaction. Not written yet.

Until it is, the supernet keeps every channel: what the paper calls "DER (w/o pruning)".
"""
