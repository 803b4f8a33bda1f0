"""Functions that run before and after steps, saving and loading, as in torch.optim."""

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

Hook = Callable[..., Any]


class Hooks(OrderedDict):
    """Functions called in order; `add` returns a handle whose `remove()` takes the function out again.

    `every` is a list with an entry for each function here and in other Hooks, for who asks whether there is any.
    """

    ids = itertools.count()

    def __init__(self, every=None):
        super().__init__()
        self.every = [] if every is None else every

    def add(self, hook, prepend=False):
        if not callable(hook):
            raise TypeError(f"hook must be callable, got {hook!r}")
        handle = Handle(self, next(Hooks.ids))
        self[handle.id] = hook
        self.every.append(handle.id)
        if prepend:
            self.move_to_end(handle.id, last=False)
        return handle


class Handle:
    """What registering a hook returns."""

    def __init__(self, hooks, id):
        self.hooks, self.id = hooks, id

    def remove(self) -> None:
        """Takes the hook out; a second call does nothing."""
        if self.hooks.pop(self.id, None) is not None:
            self.hooks.every.remove(self.id)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()


ANY_HOOKS: list[int] = []  # a step checks this one list instead of two
GLOBAL_PRE, GLOBAL_POST = Hooks(ANY_HOOKS), Hooks(ANY_HOOKS)


def register_optimizer_step_pre_hook(hook: Hook) -> Handle:
    """Calls `hook(optimizer, args, kwargs)` before every step of every optimizer.

    The hook may return new `(args, kwargs)`. Returns a handle with `remove()`.
    """
    return GLOBAL_PRE.add(hook)


def register_optimizer_step_post_hook(hook: Hook) -> Handle:
    """Calls `hook(optimizer, args, kwargs)` after every step of every optimizer. Returns a handle with `remove()`."""
    return GLOBAL_POST.add(hook)


class Hooked:
    """The hooks of one optimizer."""

    def _setup_hooks(self) -> None:
        self._hooked: list[int] = []  # not empty: steps have hooks
        self._step_pre, self._step_post = Hooks(self._hooked), Hooks(self._hooked)
        self._state_dict_pre, self._state_dict_post = Hooks(), Hooks()
        self._load_pre, self._load_post = Hooks(), Hooks()

    def register_step_pre_hook(self, hook: Hook) -> Handle:
        """Calls `hook(optimizer, args, kwargs)` before each step; it may return new `(args, kwargs)`.

        Returns a handle with `remove()`.
        """
        return self._step_pre.add(hook)

    def register_step_post_hook(self, hook: Hook) -> Handle:
        """Calls `hook(optimizer, args, kwargs)` after each step. Returns a handle with `remove()`."""
        return self._step_post.add(hook)

    def register_state_dict_pre_hook(self, hook: Hook, prepend: bool = False) -> Handle:
        """Calls `hook(optimizer)` before `state_dict`. Returns a handle with `remove()`."""
        return self._state_dict_pre.add(hook, prepend)

    def register_state_dict_post_hook(self, hook: Hook, prepend: bool = False) -> Handle:
        """Calls `hook(optimizer, state_dict)` after `state_dict`; it may return another one.

        Returns a handle with `remove()`.
        """
        return self._state_dict_post.add(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Hook, prepend: bool = False) -> Handle:
        """Calls `hook(optimizer, state_dict)` before loading; it may return another one.

        Returns a handle with `remove()`.
        """
        return self._load_pre.add(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Hook, prepend: bool = False) -> Handle:
        """Calls `hook(optimizer)` after loading. Returns a handle with `remove()`."""
        return self._load_post.add(hook, prepend)
