"""Flattening of the structures in which parameters and gradients come."""

from collections.abc import Iterable, Mapping, Set


def is_container(node):
    return isinstance(node, (Mapping, list, tuple))


def is_pair(node):
    return isinstance(node, tuple) and len(node) == 2 and isinstance(node[0], str)


def listed(tree):
    """Turns an iterator over arrays into a list; anything else is returned as it is."""
    if isinstance(tree, Set):
        raise TypeError("params must be in a fixed order; a set has none")
    if is_container(tree) or exports_memory(tree) or not isinstance(tree, Iterable):
        return tree
    return list(tree)


def flatten(tree):
    """Returns the leaves of nested mappings and sequences, in order, as (name, leaf) pairs.

    A name is the dotted path of a leaf below mappings and (name, leaf) pairs, such as `encoder.0.weight`.
    It is None for a leaf that only sequences hold: its position says nothing that its order does not.
    """
    return list(walk(listed(tree), "", False))


def containers(tree):
    """The lists and mappings of a structure, in which its leaves can be replaced."""
    if isinstance(tree, Mapping):
        parts = list(tree.values())
        if isinstance(tree, dict) or all(a is b for a, b in zip(parts, tree.values(), strict=True)):
            yield tree  # another mapping may make its values anew each time
    elif isinstance(tree, (list, tuple)):
        parts = tree
        if isinstance(tree, list):
            yield tree
    else:
        return
    for part in parts:
        yield from containers(part)


def exports_memory(node):
    try:
        if any(hasattr(node, name) for name in ("__array_interface__", "__array__", "__dlpack__", "tocoo")):
            return True
        memoryview(node).release()
    except TypeError:
        return False
    except Exception:  # an exporter that fails is one: `as_array` says how
        return True
    return True


def walk(node, path, named):
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from walk(value, join(path, key), True)
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            if is_pair(value):
                yield from walk(value[1], join(path, value[0]), True)
            else:
                yield from walk(value, join(path, position), named)
    else:
        yield (path if named else None), node


def join(path, key):
    return f"{path}.{key}" if path else str(key)
