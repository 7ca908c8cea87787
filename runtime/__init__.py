"""Everything that executes: values, requests, repositories, scheduling, backends, front-ends, figures.

Imports `cantata.grammars` and `cantata.dag`. What a model.py sees lives in `cantata.bls`, above.
"""
