"""cantata serves pipelines of models.

The folders are the architecture; imports run one way, from the bottom of this list up:

- `cantata.grammars`: text to typed configuration, with the position of every field;
- `cantata.dag`: an ensemble as a graph, its checks, its compiled plan, one request's run;
- `cantata.runtime`: everything that executes: repositories, scheduling, backends, front-ends, figures;
- `cantata.bls`: what a model.py sees, and the backend that hosts it.
"""

__version__ = "0.1.0"
