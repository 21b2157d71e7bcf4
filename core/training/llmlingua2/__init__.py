"""LLMLingua-2's recipe: collect what a large model strikes out, label words, filter, fit.

Source: Pan et al., "LLMLingua-2: Data Distillation for Efficient and Faithful Task-Agnostic
Prompt Compression", Findings of ACL 2024: `collect` is its section 3.1, `annotate` 3.2, `quality`
3.3 and `fit` section 4.
"""
