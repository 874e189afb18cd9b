"""How are the bundled reference models made: text, tokenizer, training, quantization, measurement.

Runs on its own with the vLLM environment's interpreter (torch, tokenizers, safetensors); the gateway never
imports it. `text`, `records`, `stories` and `words` are pure Python and may be imported anywhere.
"""
