"""What does each command about people and keys do? Groups of the `tollgate` program, thin.

May import the rooms' public functions and the control plane's views; holds no rules and no SQL.
`gateway/cli.py` puts them together.
"""
