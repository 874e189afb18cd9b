"""Programs and helpers that tests start or call: the mock vLLM and the recorder of its golden exchanges."""
