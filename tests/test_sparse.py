"""Row-sparse gradients: torch's semantics, cost by touched rows, the same bits for any number of threads."""

import copy
import pickle

import numpy as np
import pytest

import fastopt
from fastopt import SGD, Adagrad, Adam, SparseAdam, SparseRows
from fastopt.kernels import threads

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's
ROWS, COLUMNS = 50, 7

CASES = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "maximize": True}),
    (SGD, {"lr": 0.1, "momentum": 0.9}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (Adagrad, {"lr": 0.1}),
    (Adagrad, {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5, "maximize": True}),
    (SparseAdam, {"lr": 0.1}),
    (SparseAdam, {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-3, "maximize": True}),
]
every_case = pytest.mark.parametrize(("method", "options"), CASES,
                                     ids=[f"{m.__name__} {o}" for m, o in CASES])


def gradients(steps=20, dtype="float64", seed=0, rows=ROWS, columns=COLUMNS, touched=12):
    """Rows with some named more than once."""
    rng = np.random.default_rng(seed)
    return [SparseRows(rng.integers(0, rows, touched), rng.standard_normal((touched, columns)).astype(dtype),
                       (rows, columns)) for _ in range(steps)]


def table_of(dtype="float64", rows=ROWS, columns=COLUMNS):
    return np.random.default_rng(9).standard_normal((rows, columns)).astype(dtype)


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_agrees_with_torch(method, options, dtype):
    torch = pytest.importorskip("torch")
    param = table_of(dtype)
    tensor = torch.tensor(param, requires_grad=True)
    mine, theirs = method(param, **options), getattr(torch.optim, method.__name__)([tensor], **options)
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows, values = rng.integers(0, ROWS, 12), rng.standard_normal((12, COLUMNS)).astype(dtype)
        tensor.grad = torch.sparse_coo_tensor(rows[None], values, param.shape, check_invariants=False)
        theirs.step()
        mine.step([SparseRows(rows, values, param.shape)])
    tolerance = dict(rtol=1e-12, atol=1e-14) if dtype == "float64" else dict(rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(param, tensor.detach().numpy(), **tolerance)


@every_case
def test_checkpoints_go_both_ways_with_torch(method, options):
    torch = pytest.importorskip("torch")
    param = table_of()
    tensor = torch.tensor(param, requires_grad=True)
    mine, theirs = method(param, **options), getattr(torch.optim, method.__name__)([tensor], **options)
    for step, grad in enumerate(gradients()):
        if step == 10:
            saved, their_saved = copy.deepcopy(mine.state_dict()), copy.deepcopy(theirs.state_dict())
            mine, theirs = method(param, **options), getattr(torch.optim, method.__name__)([tensor], **options)
            mine.load_state_dict(their_saved)
            if options.get("momentum"):
                continue  # torch's own buffer is sparse: it cannot go on from a dense one
            for entries in saved["state"].values():
                entries.update({key: torch.from_numpy(value) for key, value in entries.items()
                                if isinstance(value, np.ndarray)})
            theirs.load_state_dict(saved)
        tensor.grad = torch.sparse_coo_tensor(grad.indices[None], grad.values, grad.shape, check_invariants=False)
        if step < 10 or not options.get("momentum"):
            theirs.step()
        mine.step([grad])
    if not options.get("momentum"):
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("method", "options"), [case for case in CASES if case[0] is not SparseAdam])
def test_equals_the_dense_step(method, options):
    """SGD and Adagrad leave a row without a gradient alone: sparse and dense are the same."""
    sparse, dense = table_of(), table_of()
    first, second = method(sparse, **options), method(dense, **options)
    for grad in gradients():
        first.step([grad])
        second.step([grad.to_dense()])
    np.testing.assert_array_equal(sparse, dense)


def test_rows_that_are_not_touched_stay():
    param = table_of()
    before = param.copy()
    optimizer = SparseAdam(param, lr=0.1)
    for grad in gradients(steps=5):
        optimizer.step([grad])
    touched = np.unique(np.concatenate([grad.indices for grad in gradients(steps=5)]))
    untouched = np.setdiff1d(np.arange(ROWS), touched)
    assert len(untouched) > 0
    np.testing.assert_array_equal(param[untouched], before[untouched])
    assert np.all(param[touched] != before[touched])
    assert not optimizer.state[0]["exp_avg"][untouched].any()


@every_case
def test_the_bits_are_the_same_for_any_number_of_threads_and_level(method, options, monkeypatch):
    def run():
        param = table_of("float32", 5000, 33)
        optimizer = method(param, **options)
        for grad in gradients(5, "float32", rows=5000, columns=33, touched=1500):
            optimizer.step([grad])
        return param.tobytes()

    serial = run()
    if threads.parallel() is not None:
        monkeypatch.setattr(threads, "PER_THREAD", 1)
        monkeypatch.setattr(threads, "most", lambda: 64)
        for n in (2, 3, 7):
            monkeypatch.setattr(threads, "num_threads", n)
            assert run() == serial
        monkeypatch.undo()
    from fastopt.kernels import simd

    for level in simd.available():
        monkeypatch.setattr(simd, "level", lambda level=level: level)
        assert run() == serial


@pytest.mark.parametrize("parts", range(1, 9))
def test_every_touched_row_is_stepped_once_whatever_the_parts(parts, monkeypatch):
    if threads.parallel() is None:
        pytest.skip("built without OpenMP")
    monkeypatch.setattr(threads, "resolve", lambda *_: parts)
    for rows, columns, touched in ((1, 1, 1), (10, 3, 10), (1000, 2, 7), (5, 5000, 3), (100, 0, 3), (0, 4, 0)):
        param = np.zeros((rows, columns), "float32")
        indices = np.random.default_rng(0).permutation(rows)[:touched]
        SGD(param, lr=1.0).step([SparseRows(indices, np.full((len(indices), columns), -1, "float32"), param.shape)])
        assert param.sum() == len(indices) * columns


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_scipy_matrices_are_gradients(kind):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    grad = gradients(1)[0].to_dense()
    matrix = getattr(scipy_sparse, f"{kind}_matrix")(grad)
    for given in (matrix, [matrix], {"w": matrix}):
        param, twin = table_of(), table_of()
        Adagrad({"w": param} if isinstance(given, dict) else param).step(given)
        Adagrad(twin).step(grad)
        np.testing.assert_array_equal(param, twin)


def test_duplicates_are_summed_in_order():
    values = np.array([[1.0], [1e17], [-1e17], [2.0]])
    grad = SparseRows([3, 3, 3, 1], values, (5, 1))
    np.testing.assert_array_equal(grad.indices, [1, 3])
    np.testing.assert_array_equal(grad.values, [[2.0], [(1.0 + 1e17) - 1e17]])
    np.testing.assert_array_equal(grad.to_dense()[:, 0], [0, 2, 0, 0, 0])
    assert "2 rows of (5, 1)" in repr(grad)


def test_gradients_without_rows_vectors_and_other_dtypes():
    param = np.ones(6, "float32")
    optimizer = Adagrad(param, lr=1.0)
    optimizer.step([SparseRows([], np.zeros(0), (6,))])
    np.testing.assert_array_equal(param, 1)
    optimizer.step([SparseRows(np.array([2], "uint8"), np.array([3.0]), (6,))])
    np.testing.assert_array_equal(param, [1, 1, 0, 1, 1, 1])
    matrix = np.ones((3, 2), "complex64")
    SGD(matrix, lr=1.0).step([SparseRows([1], np.array([[1j, 1j]]), (3, 2))])
    np.testing.assert_array_equal(matrix[1], 1 - 1j)


@every_case
def test_copies_go_on_with_the_same_bits(method, options):
    param = table_of()
    optimizer = method(param, **options)
    steps = gradients()
    for grad in steps[:10]:
        optimizer.step([grad])
    second, other = pickle.loads(pickle.dumps((param, optimizer)))
    third = param.copy()
    loaded = method(third)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for grad in steps[10:]:
        optimizer.step([grad])
        other.step([grad])
        loaded.step([grad])
    assert param.tobytes() == second.tobytes() == third.tobytes()


def test_sparse_and_dense_gradients_may_alternate():
    sparse, dense = table_of(), table_of()
    first, second = SGD(sparse, lr=0.1, momentum=0.9), SGD(dense, lr=0.1, momentum=0.9)
    for step, grad in enumerate(gradients(6)):
        first.step([grad.to_dense() if step % 3 == 1 else grad])
        second.step([grad.to_dense()])
    np.testing.assert_array_equal(sparse, dense)


GRADS = gradients(1)[0]


@pytest.mark.parametrize(("optimizer", "grad", "error", "message"), [
    (lambda p: Adam(p), GRADS, TypeError,
     "gradient of parameter 0 is sparse: this method takes dense gradients only; SGD, Adagrad and SparseAdam accept"),
    (lambda p: SparseAdam(p), np.zeros((ROWS, COLUMNS)), TypeError, "takes sparse gradients only"),
    (lambda p: SGD(p, weight_decay=0.1), GRADS, ValueError, "group 0 has weight_decay, which is not possible"),
    (lambda p: SGD(p), SparseRows([0], np.zeros((1, 3)), (ROWS, 3)), ValueError,
     r"gradient of parameter 0 must have shape \(50, 7\), got \(50, 3\)"),
    (lambda p: SGD(p), SparseRows([0], np.zeros((1, COLUMNS), complex), (ROWS, COLUMNS)), TypeError,
     "must be float32 or float64"),
])
def test_a_step_that_raises_changes_nothing(optimizer, grad, error, message):
    param = table_of()
    before = param.copy()
    made = optimizer(param)
    with pytest.raises(error, match=message):
        made.step([grad])
    np.testing.assert_array_equal(param, before)
    assert made.state == {}


@pytest.mark.parametrize(("arguments", "error", "message"), [
    (([0.5], np.zeros((1, 2)), (3, 2)), TypeError, "indices must be whole numbers"),
    (([[0]], np.zeros((1, 2)), (3, 2)), TypeError, r"indices must be whole numbers of shape \(k,\)"),
    (([0], np.zeros((1, 2), int), (3, 2)), TypeError, "values must be float32"),
    (([0], np.zeros((2, 2)), (3, 2)), ValueError, r"values must have shape \(1, 2\), got \(2, 2\)"),
    (([3], np.zeros((1, 2)), (3, 2)), ValueError, "indices must be from 0 to 2, got 3 to 3"),
    (([-1], np.zeros((1, 2)), (3, 2)), ValueError, "indices must be from 0 to 2, got -1"),
    (([0], np.zeros(1), ()), ValueError, "shape must have at least one dimension"),
])
def test_bad_rows(arguments, error, message):
    with pytest.raises(error, match=message):
        SparseRows(*arguments)


def test_sparse_adam_learns_an_embedding():
    rng = np.random.default_rng(0)
    target, learned = rng.standard_normal((200, 5)), np.zeros((200, 5))
    optimizer = SparseAdam(learned, lr=0.05)
    schedule = fastopt.lr_scheduler.CosineAnnealingLR(optimizer, 2000)
    for _ in range(2000):
        rows = rng.integers(0, 200, 30)
        optimizer.step([SparseRows(rows, 2 * (learned[rows] - target[rows]), learned.shape)])
        schedule.step()
    np.testing.assert_allclose(learned, target, atol=3e-2)
