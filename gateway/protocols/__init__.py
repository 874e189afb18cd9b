"""What do the bytes mean? Wire formats, from bytes to values and back.

May import inference and errors. No I/O, no state.
"""
